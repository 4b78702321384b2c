"""Other programs' long lists of rules as IP sets: of nftables' sets and verdict maps each element is read as a rule.

Rules one after another that end in the same way, and differ in addresses and ports alone, are one rule with a set of
these: a proof then takes as long as the set's classes differ, not as it has elements (set_products.py).
"""

from __future__ import annotations

from itertools import groupby

from istio_init.model.foreign import HookedTable
from istio_init.model.inet import interval
from istio_init.model.ip_sets import AddressPart, IpSet, Member, PortPart, SetMember
from istio_init.model.rules import (
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    Jump,
    Protocol,
    Rule,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import UnknownTarget
from istio_init.record import Record
from istio_init.verify.set_products import product

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from istio_init.model.ip_sets import MemberPart
    from istio_init.model.rules import Family, Match, Network, Ruleset, Target

# Shorter runs stay as they are. A chain with more rules than the other bound, in which each has another target, is
# undecided: each of its packets would be compared with each of them.
LEAST, MOST_RULES = 16, 1024
SIDES = {Source: "src", Destination: "dst", SourcePorts: "src", DestinationPorts: "dst"}


class _Entry(Record):
    """A rule as an element of a list: what all of the list have in common, and its own members."""

    common: tuple[Match, ...]
    target: Target
    sides: tuple[str, ...]
    kind: str
    members: tuple[Member, ...]


def shortened(ruleset: Ruleset) -> tuple[Ruleset, tuple[IpSet, ...]]:
    """The ruleset with other programs' lists as matches of sets, and these sets."""
    sets: list[IpSet] = []
    tables = tuple(
        table.replace(chains=tuple(_chain(chain, table.name, ruleset.family, sets) for chain in table.chains))
        if isinstance(table, HookedTable)
        else table
        for table in ruleset.tables
    )
    return (ruleset.replace(tables=tables), tuple(sets)) if sets or tables != ruleset.tables else (ruleset, ())


def _chain(chain: Chain, table: str, family: Family, sets: list[IpSet]) -> Chain:
    if len(chain.rules) < LEAST:
        return chain
    rules: list[Rule] = []
    entries = [(rule, _entry(rule, family)) for rule in chain.rules]
    for key, group in groupby(entries, key=lambda each: _key(each[1])):
        run = list(group)
        members = tuple(member for _, entry in run if entry for member in entry.members)
        first = run[0][1]
        ip_set = IpSet(f"{table} {chain.name} {len(rules)}", first.kind if first else "", family, members)
        if key is None or first is None or len(run) < LEAST or product(ip_set) is None:
            rules += [rule for rule, _ in run]
            continue
        sets.append(ip_set)
        member = SetMember(ip_set.name, first.sides, (ip_set,))
        rules.append(Rule((*first.common, member), first.target))  # type: ignore[arg-type]
    if len(rules) > MOST_RULES:
        rules = [Rule((), UnknownTarget(f"{len(rules)} rules", 0, b""))]
    return chain.replace(rules=tuple(rules)) if len(rules) < len(chain.rules) else chain


def _key(entry: _Entry | None) -> Hashable:
    return None if entry is None else (entry.common, entry.target, entry.sides, entry.kind)


def _entry(rule: Rule, family: Family) -> _Entry | None:
    """A rule as an element of a list; None for one that is none, or whose target lets packets meet the next one."""
    if not (isinstance(rule.target, Verdict) or (isinstance(rule.target, Jump) and rule.target.goto)):
        return None
    addresses = [each for each in rule.matches if isinstance(each, Source | Destination)]
    ports = [each for each in rule.matches if isinstance(each, SourcePorts | DestinationPorts)]
    protocols = [each for each in rule.matches if isinstance(each, Protocol)] if ports else []
    own = [*addresses, *ports, *protocols]
    kinds = {type(each) for each in own}
    if len(kinds) < len(own) or len(ports) > 1 or not (addresses or ports) or any(each.negated for each in own):
        return None
    if any(each.network.family != family for each in addresses):
        return None
    numbers = [each.number for each in protocols] or [TCP, UDP]
    if ports and not {*numbers} <= {TCP, UDP}:
        return None
    parts: list[list[MemberPart]] = [[_part(each.network)] for each in addresses]
    parts += [[PortPart(number, each.ports.low, each.ports.high) for number in numbers] for each in ports]
    return _Entry(
        tuple(each for each in rule.matches if each not in own),
        rule.target,
        tuple(SIDES[type(each)] for each in (*addresses, *ports)),
        "hash:" + ",".join([*("net" for _ in addresses), *("port" for _ in ports)]),
        tuple(Member(each) for each in _combined(parts)),
    )


def _combined(parts: list[list[MemberPart]]) -> Iterator[tuple[MemberPart, ...]]:
    if not parts:
        yield ()
        return
    for first in parts[0]:
        for rest in _combined(parts[1:]):
            yield (first, *rest)


def _part(network: Network) -> AddressPart:
    low, high = (each.to_bytes(len(network.address)) for each in interval(network))
    return AddressPart(low, high, network.prefix)
