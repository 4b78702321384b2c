"""Other programs' nftables tables, as far as rules of iptables say the same: what explain and prove follow.

Each base chain becomes a table of one hook, with the chains that it may jump to. An expression without a counterpart is
a match or a target that is not known, so that what depends on it is undecided; nothing is guessed.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.formats.nft.unfold import in_order, unfold
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    FAMILIES,
    HEAD,
    NFPROTO_INET,
    NFT_NAME,
    RULE_CHAIN,
    NfnetlinkChannel,
    is_dormant,
    name,
)
from istio_init.kernel.nft.expressions import ELEMENT, EXPRESSION_DATA, EXPRESSION_NAME, EXPRESSIONS
from istio_init.kernel.nft.foreign_maps import MapReader
from istio_init.kernel.nft.foreign_statements import mark_target, translation
from istio_init.kernel.nft.native_decode import NativeReader, contents
from istio_init.kernel.nft.native_decode_target import verdict_of
from istio_init.kernel.nft.native_dump import set_name
from istio_init.kernel.nft.native_encode import CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE
from istio_init.kernel.nft.set_intervals import members
from istio_init.model.extensions import Multiport
from istio_init.model.foreign import HookedTable
from istio_init.model.inet import NAMES, InetRule, Ports
from istio_init.model.rules import BUILTIN_CHAINS, Chain, PortRange, Protocol, Rule
from istio_init.model.unknown import UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.inet import InetMatch
    from istio_init.model.rules import Family, Hook, Match, Target

_HOOKS: dict[int, Hook] = {0: "PREROUTING", 1: "INPUT", 2: "FORWARD", 3: "OUTPUT", 4: "POSTROUTING"}
_WORDS = {NFPROTO_INET: "inet", FAMILIES["ipv4"]: "ip", FAMILIES["ipv6"]: "ip6"}
# What neither matches nor changes a packet.
_SILENT = frozenset({"counter", "limit", "log", "last"})
# What only reads.
_READING = frozenset(
    {"bitwise", "byteorder", "cmp", "fib", "lookup", "range", "rt", "socket", "connlimit", "osf", "xfrm"}
)
_WHOLE = {
    "masq": ("MASQUERADE", ""),
    "reject": ("REJECT", ""),
    "notrack": ("CT", "--notrack"),
    "queue": ("NFQUEUE", ""),
}


def foreign_tables(family: Family) -> tuple[HookedTable, ...]:
    """Those of the calling thread's namespace that see packets of a family; none where nftables does not work."""
    try:
        with NfnetlinkChannel() as channel:
            _, tables = channel.consistent(lambda: tuple(_tables(channel, family)))
            return tables
    except KernelError:
        return ()


def _tables(channel: NfnetlinkChannel, family: Family) -> Iterator[HookedTable]:
    for body in channel.table_bodies():
        number, facts = body[0], attributes(body[HEAD.size :])
        table = name(facts[NFT_NAME])
        own_table = table in NAMES.values() if number == NFPROTO_INET else table in BUILTIN_CHAINS
        if number in {NFPROTO_INET, FAMILIES[family]} and not own_table and not is_dormant(facts):
            yield from _hooked(channel, number, table, family)


def _hooked(channel: NfnetlinkChannel, number: int, table: str, family: Family) -> Iterator[HookedTable]:
    chains = [attributes(data[HEAD.size :]) for data in channel.chains(number)]
    chains = [facts for facts in chains if name(facts[NFT_NAME]) == table]
    if not any(CHAIN_HOOK in facts for facts in chains):
        return
    rules = _rules(channel, number, table, family)
    plain = tuple(
        Chain(each, tuple(rules.get(each, ())))
        for facts in chains
        if CHAIN_HOOK not in facts
        for each in [_name(facts)]
    )
    for facts in chains:
        hook = attributes(facts.get(CHAIN_HOOK, b""))
        place = _HOOKS.get(int.from_bytes(hook[1], "big")) if hook else None
        if place is None:
            continue
        policy = "DROP" if not any(facts[CHAIN_POLICY]) else "ACCEPT"
        base = Chain(place, tuple(rules.get(_name(facts), ())), policy)
        priority = int.from_bytes(hook[2], "big", signed=True)
        title = f"nftables {_WORDS[number]} {table} {_name(facts)}"
        yield HookedTable(title, (base, *plain), place, priority, name(facts[CHAIN_TYPE]))  # type: ignore[arg-type]


def _name(facts: dict[int, bytes]) -> str:
    return name(facts[CHAIN_NAME])


def _rules(channel: NfnetlinkChannel, number: int, table: str, family: Family) -> dict[str, list[Rule]]:
    """A table's rules by chain, those of the other family left out."""
    sets = channel.sets(number, table)
    elements = {each: tuple(channel.elements(number, table, each)) for each in map(set_name, sets)}
    contents_by_set = {
        each: values for data in sets if (values := contents(data, elements)) for each in [set_name(data)]
    }
    reader = NativeReader(contents_by_set, None if number == NFPROTO_INET else family)
    maps = MapReader(elements, family)
    rules: dict[str, list[Rule]] = {}
    for data in channel.rules(number, table):
        facts = attributes(data[HEAD.size :])
        whole = list(members(facts.get(EXPRESSIONS, b"")))
        loud = [each for each in whole if _kind(each) not in _SILENT]
        limits = tuple(UnknownMatch("limit", 0, b"", "") for each in whole if _kind(each) == "limit")
        rule, _ = reader.read(b"".join(attribute(ELEMENT, each) for each in loud))
        if rule.family in {None, family}:
            rules.setdefault(name(facts[RULE_CHAIN]), []).extend(_as_iptables(rule, limits, family, maps))
    return rules


def _kind(element: bytes) -> str:
    return name(attributes(element).get(EXPRESSION_NAME, b""))


def _as_iptables(rule: InetRule, limits: tuple[Match, ...], family: Family, maps: MapReader) -> tuple[Rule, ...]:
    """The rules of iptables that mean the same; ports stay one rule, so that numbers are those of nft's listing."""
    further: list[Match] = [*limits]
    rest = []
    for match in rule.matches:
        if isinstance(match, Ports) and len(match.intervals) > 1:
            ranges = tuple(PortRange(low, high) for low, high in match.intervals)
            side = "sports" if match.side == "sport" else "dports"
            further += [Protocol(match.protocol), Multiport(side, ranges, match.negated)]  # type: ignore[arg-type]
        else:
            rest.append(match)
    cases = _cases(rule.target, family, maps)
    rules = unfold(InetRule(tuple(_with_words(rest, maps)), rule.target, family), family)
    return tuple(
        Rule(in_order(dict.fromkeys((*further, *each.matches, *matches))), target)
        for each in rules
        for matches, target in cases
    )


def _cases(target: Target, family: Family, maps: MapReader) -> list[tuple[tuple[Match, ...], Target]]:
    """What a rule does, and under which further conditions: one case for each element of a map."""
    if not isinstance(target, UnknownTarget):
        return [((), target)]
    raw = list(members(target.data))
    end = maps.conditions_end(_expressions(target.data))
    conditions, effect = (b"".join(attribute(ELEMENT, each) for each in some) for some in (raw[:end], raw[end:]))
    choices = maps.choices(_expressions(conditions))
    if end and end < len(raw) and choices is not None:
        cases = _cases(UnknownTarget(target.name, 0, effect), family, maps)
        return [((*one, *other), each) for one in choices for other, each in cases]
    mapped = maps.cases(_expressions(target.data))
    if mapped is not None:
        return mapped  # none where the map is empty
    unread, target = _target(target, family)
    choices = maps.choices(_expressions(unread[0].data)) if unread else [()]
    return [(matches, target) for matches in choices or [unread]]


def _expressions(data: bytes) -> list[tuple[str, dict[int, bytes]]]:
    return [(_kind(each), attributes(attributes(each).get(EXPRESSION_DATA, b""))) for each in members(data)]


def _with_words(matches: list[InetMatch], maps: MapReader) -> Iterator[InetMatch]:
    """The matches; of what has no word in iptables' language, that which it asks if it is one condition."""
    for match in matches:
        if isinstance(match, UnknownMatch) and match.name == "nftables":
            choices = maps.choices(_expressions(match.data))
            yield from choices[0] if choices and len(choices) == 1 else (match,)  # type: ignore[misc]
        else:
            yield match


def _target(target: UnknownTarget, family: Family) -> tuple[tuple[UnknownMatch, ...], Target]:
    """A verdict behind what is not known, or a translation, a refusal and the like by iptables' name.

    The same target where it is none of these, or more than that.
    """
    raw = list(members(target.data))
    elements = _expressions(target.data)
    kinds = [kind for kind, _ in elements]
    if kinds[-1] == "immediate" and not any(_sets(*each) for each in elements[:-1]):
        try:
            verdict = verdict_of(elements[-1][1])
        except (KeyError, ValueError):
            return (), target
        unread = b"".join(attribute(ELEMENT, each) for each in raw[:-1])
        return (UnknownMatch("nftables", 0, unread),), verdict
    if kinds[-1] in _WHOLE:
        named, options = _WHOLE[kinds[-1]]
        if len(kinds) == 1:
            return (), UnknownTarget(named, 0, b"", options)
    return (), translation(elements, family) or mark_target(elements) or target


def _sets(kind: str, facts: dict[int, bytes]) -> bool:
    """Whether an expression changes something: by a source register, or by what it is."""
    registers = {"meta": 3, "ct": 4, "payload": 5, "exthdr": 7}  # NFTA_*_SREG
    return registers.get(kind) in facts or kind not in {*registers, *_READING}
