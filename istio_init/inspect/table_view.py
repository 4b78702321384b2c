"""Tables as rows for people: each rule's columns and counters, its state, and its purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from istio_init.formats.iptables_list import columns, inet_columns
from istio_init.formats.iptables_save import rule_text
from istio_init.formats.nft.layout import DROP, ONE_FAMILY, RETURN, UNHEARD, layout, only_family, stored
from istio_init.formats.nft.listing import rule_text as inet_text
from istio_init.formats.nft.merge import fold
from istio_init.model.compare import equivalent, own_rules, recognised, unpaired
from istio_init.model.extensions import Tproxy
from istio_init.model.inet import BASE_CHAINS, NAMES, InetRule, InetTable, chain_name, sets
from istio_init.model.rules import FAMILIES, Rule
from istio_init.record import Record
from istio_init.simulate.purposes import Purpose, purpose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_init.formats.iptables_list import Columns
    from istio_init.model.counters import Count, CountedInet, CountedTable
    from istio_init.model.inet import InetChain, Sets
    from istio_init.model.rules import Chain, Family, Ruleset, Table
    from istio_init.simulate.purposes import RuleLocation

AnyRule = TypeVar("AnyRule", Rule, InetRule)

# An Istio rule that the plan has, that it lacks, that it has elsewhere in the chain, or of a family that the plan does
# not cover; another program's rule.
RuleState: TypeAlias = Literal["in place", "unexpected", "misplaced", "other family", "foreign"]

GUARD = Purpose("", ONE_FAMILY)
DROPPED = Purpose("", UNHEARD)


class RuleRow(Record):
    """One rule: its number in its chain, from 1, and how its backend's own tool prints it."""

    number: int
    count: Count | None
    columns: Columns
    text: str
    state: RuleState
    purposes: tuple[Purpose, ...] = ()


class ChainRows(Record):
    """A chain with its rules; a built-in one has a policy. `missing` are the plan's rules that it lacks, as text."""

    name: str
    rows: tuple[RuleRow, ...]
    policy: str | None = None
    count: Count | None = None
    missing: tuple[str, ...] = ()


class TableRows(Record):
    """A table; `family` is `inet` for native ones."""

    family: str
    name: str
    chains: tuple[ChainRows, ...]


def table_rows(
    counted: CountedTable, wanted: Table | None, known: Mapping[RuleLocation, Purpose], stray: RuleState = "unexpected"
) -> TableRows:
    """The rows of an iptables table, compared with the plan's table; other Istio rules are `stray`."""
    found = recognised(counted.table, wanted)
    plans = {chain.name: chain for chain in wanted.chains} if wanted else {}
    chains = tuple(_chain_rows(counted, chain, plans.get(chain.name), known, stray) for chain in found.chains)
    absent = (chain for name, chain in plans.items() if found.chain(name) is None)
    lacking = tuple(ChainRows(chain.name, (), missing=tuple(map(rule_text, chain.rules))) for chain in absent)
    return TableRows(counted.family, found.name, (*chains, *lacking))


def _chain_rows(
    counted: CountedTable, chain: Chain, wanted: Chain | None, known: Mapping[RuleLocation, Purpose], stray: RuleState
) -> ChainRows:
    mine = own_rules(chain)
    rules = wanted.rules if wanted else ()
    states = dict(zip(mine, _states(tuple(chain.rules[at] for at in mine), rules, stray), strict=True))
    counts = counted.counts.get(chain.name, ())
    rows = []
    for at, rule in enumerate(chain.rules):
        why = purpose(known, counted.table.name, chain.name, rule) if at in states else None
        count = counts[at] if at < len(counts) else None
        state, purposes = states.get(at, "foreign"), (why,) if why else ()
        rows.append(RuleRow(at + 1, count, columns(rule), rule_text(rule), state, purposes))
    lacking = unpaired(rules, tuple(chain.rules[at] for at in mine))
    missing = tuple(rule_text(rule) for _, rule in lacking)
    return ChainRows(chain.name, tuple(rows), chain.policy, counted.policies.get(chain.name), missing)


def _states(
    found: tuple[AnyRule, ...], wanted: tuple[AnyRule, ...], stray: RuleState = "unexpected"
) -> list[RuleState]:
    """How each Istio rule of a chain compares with the plan's."""
    strays = {number for number, _ in unpaired(found, wanted)}
    lacks = any(True for _ in unpaired(wanted, found))
    same = not (strays or lacks) and equivalent(found, wanted)
    states: list[RuleState] = []
    for number, rule in enumerate(found, 1):
        if number in strays:
            states.append(stray)
        elif strays or lacks or same or rule == wanted[number - 1]:
            states.append("in place")
        else:
            states.append("misplaced")
    return states


def inet_rows(
    counted: CountedInet, planned: tuple[Ruleset, ...], known: Mapping[Family, Mapping[RuleLocation, Purpose]]
) -> TableRows:
    """One of our native tables; `planned` is the plan, `known` its rules' purposes by family."""
    wanted = stored(layout(planned, counted.name))
    found = InetTable(counted.name, tuple(chain for chain, _ in counted.chains))
    family, existing = _to_compare(found, planned)
    plans = {chain.name: tuple(_of_family(chain, family).values()) for chain in wanted.chains}
    why = _inet_purposes(counted, planned, known)
    named = sets(found)
    chains: list[ChainRows] = []
    for chain, counts in counted.chains:
        rules, mine = plans.get(chain.name, ()), existing[chain.name]
        states = dict(zip(mine, _states(tuple(mine.values()), rules), strict=True))
        rows = (
            RuleRow(
                at + 1, count, inet_columns(rule, named), _met(rule, count, named),
                states.get(at, "other family"), why(chain.name, rule),
            )
            for at, (rule, count) in enumerate(zip(chain.rules, counts, strict=True))
        )  # fmt: skip
        missing = tuple(inet_text(rule, sets(wanted)) for _, rule in unpaired(rules, tuple(mine.values())))
        policy = "ACCEPT" if chain.name in BASE_CHAINS[counted.name] else None
        chains.append(ChainRows(chain_name(chain.name), tuple(rows), policy, missing=missing))
    for name, rules in plans.items():
        if name not in existing:
            missing = tuple(inet_text(rule, sets(wanted)) for rule in rules)
            chains.append(ChainRows(chain_name(name), (), missing=missing))
    return TableRows("inet", NAMES[counted.name], tuple(chains))


def _to_compare(found: InetTable, planned: tuple[Ruleset, ...]) -> tuple[Family | None, dict[str, dict[int, InetRule]]]:
    """The family to compare the plan in, and by chain the existing rules of it, by position.

    It is None, and they are all, where the table has no more families than the plan. A plan of one family leaves the
    other one's rules alone, and those of both are then compared as that one meets them.
    """
    guarded, families = only_family(found), {ruleset.family for ruleset in planned}
    family = next(iter(families)) if len(families) == 1 and families != {guarded} else None
    theirs = family is not None and guarded is not None
    return family, {chain.name: {} if theirs else _of_family(chain, family) for chain in found.chains}


def _of_family(chain: InetChain, family: Family | None) -> dict[int, InetRule]:
    """The rules that packets of a family meet, by position, each as one of that family; with None all, unchanged."""
    if family is None:
        return dict(enumerate(chain.rules))
    return {at: rule.replace(family=family) for at, rule in enumerate(chain.rules) if rule.family in {None, family}}


def _met(rule: InetRule, count: Count | None, named: Sets) -> str:
    """A rule as `nft list` prints it, with its counter."""
    text = inet_text(rule, named)
    return text.replace("packets 0 bytes 0", f"packets {count.packets} bytes {count.bytes}") if count else text


def _inet_purposes(
    counted: CountedInet, planned: tuple[Ruleset, ...], known: Mapping[Family, Mapping[RuleLocation, Purpose]]
) -> Callable[[str, InetRule], tuple[Purpose, ...]]:
    """What a rule of a chain is for: all that the rules are for which it is made of, each once."""
    why: dict[tuple[str, InetRule], tuple[Purpose, ...]] = {}
    for ruleset in planned:
        table = ruleset.table(counted.name)
        for chain in table.chains if table else ():
            folded = fold(chain.parts, ruleset.family)
            for number, rule in enumerate(folded.rules):
                sources = folded.sources(number)
                purposes = (purpose(known[ruleset.family], counted.name, chain.name, source) for source in sources)
                why[chain.name, rule] = tuple(dict.fromkeys(each for each in purposes if each))

    def purposes_of(chain: str, rule: InetRule) -> tuple[Purpose, ...]:
        if rule.target == RETURN and not rule.matches and chain in BASE_CHAINS[counted.name]:
            return (GUARD,)
        for family in FAMILIES if rule.family is None else (rule.family,):
            if found := why.get((chain, rule.replace(family=family))):
                return found
        drops = rule.target == DROP and any(
            each.matches == rule.matches and isinstance(each.target, Tproxy) for name, each in why if name == chain
        )
        return (DROPPED,) if drops else ()

    return purposes_of
