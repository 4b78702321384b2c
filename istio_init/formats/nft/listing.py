"""Inet tables as the text that `nft list table` prints once they are applied, counters zero.

The spellings are those of nft 1.0.6; integration tests hold them against the program itself.
"""

from __future__ import annotations

from istio_init.errors import assert_never
from istio_init.formats.addresses import address_text, ports_text, range_text
from istio_init.formats.nft.layout import stored
from istio_init.model.extensions import (
    ConnMark,
    CtState,
    CtZone,
    Mark,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.inet import (
    BASE_CHAINS,
    NAMES,
    Addresses,
    Ports,
    chain_name,
    content,
    element_type,
    needs_family_match,
    netmask,
    prefix_length,
    sets,
)
from istio_init.model.rules import IPV4, TCP, UDP, InInterface, Jump, OutInterface, Owner, Protocol, Redirect, Verdict
from istio_init.model.unknown import UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator
    from typing import TypeAlias

    from istio_init.model.inet import Content, InetChain, InetMatch, InetRule, InetTable, Interval, Sets
    from istio_init.model.rules import Family, Target

    # A line of a set or a chain: the value that it shows, its text, and whether it continues the line before it.
    BlockLine: TypeAlias = tuple[Hashable, str, bool]

ALL_BITS = 0xFFFFFFFF
PROTOCOLS = {TCP: "tcp", UDP: "udp"}
FAMILY_WORDS: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}

# The order in which nft prints the states of connections: their bits' in <linux/netfilter/nf_conntrack_common.h>
STATES = {
    "INVALID": "invalid",
    "ESTABLISHED": "established",
    "RELATED": "related",
    "NEW": "new",
    "UNTRACKED": "untracked",
}

# nft has a name for a priority, but this one only where the hook is what the name was made for.
_PRIORITIES = {-150: "mangle", -300: "raw"}
_NAT_PRIORITIES = {"PREROUTING": "dstnat", "OUTPUT": "-100"}
_PER_LINE = {"inet_service": 5, "ipv4_addr": 2, "ipv6_addr": 1}

INDENT, CONTINUED = "\t\t", "\t\t\t     "

# By a match's `negated`.
_NOT = ("", "!= ")


def listing(tables: Iterable[InetTable]) -> str:
    """Tables (as `nft.layout` makes them) as `nft list table` prints each of them, one after the other."""
    return "".join(map(_table, tables))


def _table(table: InetTable) -> str:
    parts = [_block(name, lines) for name, lines in blocks(table).items()]
    return "".join((f"table inet {NAMES[table.name]} {{\n", "\n".join(parts), "}\n"))


def _block(name: str, lines: tuple[BlockLine, ...]) -> str:
    texts = [f"{CONTINUED if continued else INDENT}{text}\n" for _, text, continued in lines]
    return "".join((f"\t{name} {{\n", *texts, "\t}\n"))


def blocks(table: InetTable) -> dict[str, tuple[BlockLine, ...]]:
    """The sets and chains of a table by `set NAME` or `chain NAME`, in the order of a listing."""
    table = stored(table)
    named = sets(table)
    result = {f"set {name}": tuple(_set_lines(kind, values)) for (kind, values), name in named.items()}
    chains = {f"chain {chain_name(chain.name)}": tuple(_chain_lines(table, chain, named)) for chain in table.chains}
    return {**result, **chains}


def _set_lines(kind: str, values: Content) -> Iterator[BlockLine]:
    yield kind, f"type {kind}", False
    if isinstance(values, frozenset):
        yield len(values), f"size {len(values)}", False
        spans = [address_text(each) for each in sorted(values)]
    else:
        yield "interval", "flags interval", False
        spans = _spans(kind, values)
    # nft breaks the line after so many elements, and aligns the next with the first.
    at_once = _PER_LINE[kind]
    for first in range(0, len(spans), at_once):
        begin, end = "" if first else "elements = { ", "," if first + at_once < len(spans) else " }"
        text = f"{begin}{', '.join(spans[first : first + at_once])}{end}"
        yield text, text, first > 0


def _chain_lines(table: InetTable, chain: InetChain, named: Sets) -> Iterator[BlockLine]:
    for hook, (kind, priority) in BASE_CHAINS[table.name].items():
        if chain.name == hook:
            word = _PRIORITIES.get(priority) or _NAT_PRIORITIES[hook]
            text = f"type {kind} hook {chain_name(hook)} priority {word}; policy accept;"
            yield (kind, hook, priority), text, False
    for rule in chain.rules:
        yield (rule, _set_names(rule, named)), rule_text(rule, named), False


def _set_names(rule: InetRule, named: Sets) -> tuple[str, ...]:
    matches = (match for match in rule.matches if isinstance(match, Ports | Addresses))
    names = (named.get((element_type(match, rule), content(match))) for match in matches)
    return tuple(name for name in names if name)


def rule_text(rule: InetRule, named: Sets) -> str:
    """One rule, given the table's sets."""
    words = [f"meta nfproto {rule.family}"] if needs_family_match(rule) else []
    words += [_match(match, rule, named) for match in rule.matches]
    comment = (f'comment "{rule.comment}"',) if rule.comment else ()
    return " ".join((*words, "counter packets 0 bytes 0", *_target(rule.target), *comment))


def _match(match: InetMatch, rule: InetRule, named: Sets) -> str:
    match match:
        case InInterface():
            return f"iifname {_NOT[match.negated]}{_interface(match.name)}"
        case OutInterface():
            return f"oifname {_NOT[match.negated]}{_interface(match.name)}"
        case Addresses():
            word = FAMILY_WORDS[rule.family or IPV4]
            return f"{word} {match.side} {_mask(match)}{_NOT[match.negated]}{_set(match, rule, named)}"
        case Protocol():
            return f"meta l4proto {_NOT[match.negated]}{_protocol(match.number)}"
        case Ports():
            return f"{_protocol(match.protocol)} {match.side} {_NOT[match.negated]}{_set(match, rule, named)}"
        case Owner():
            return f"meta sk{match.kind} {_NOT[match.negated]}{range_text(match.low, match.high)}"
        case Mark():
            return f"meta mark {_bits(match)}"
        case ConnMark():
            return f"ct mark {_bits(match)}"
        case CtState():
            return f"ct state {','.join(word for state, word in STATES.items() if state in match.states)}"
        case UnknownMatch():
            return _unknown(match)
        case _:
            assert_never(match)


def _target(target: Target) -> tuple[str, ...]:
    match target:
        case Verdict():
            return (target.name.lower(),) if target.name else ()
        case Jump():
            return (f"{'goto' if target.goto else 'jump'} {chain_name(target.chain)}",)
        case Redirect():
            return (f"redirect to :{ports_text(target.ports)}",)
        case Tproxy():
            return (_tproxy(target), f"meta mark set {target.mark:#010x}", "accept")
        case SetMark():
            return (f"meta mark set {target.value:#010x}",)
        case SaveMark():
            return ("ct mark set meta mark",)
        case RestoreMark():
            return ("meta mark set ct mark",)
        case CtZone():
            return (f"ct zone set {target.zone}",)
        case UnknownTarget():
            return (_unknown(target),)
        case _:
            assert_never(target)


def _tproxy(target: Tproxy) -> str:
    family: Family = "ipv4" if len(target.address) == 4 else "ipv6"
    return f"tproxy {FAMILY_WORDS[family]} to :{target.port}"


def _interface(name: str) -> str:
    """A name in quotes; iptables' + at the end is nftables' *, and a * at the end is no pattern in iptables."""
    if name.endswith("+"):
        return f'"{name[:-1]}*"'
    return f'"{name[:-1]}\\*"' if name.endswith("*") else f'"{name}"'


def interval_text(interval: Interval, family: Family) -> str:
    """An interval of addresses: as one address, as a network where it is one, else by both ends."""
    low, high = interval
    if low == high:
        return address(low, family)
    if (length := prefix_length(interval, family)) is not None:
        return f"{address(low, family)}/{length}"
    return f"{address(low, family)}-{address(high, family)}"


def address(number: int, family: Family) -> str:
    """One address, given as a number."""
    return address_text(number.to_bytes(4 if family == IPV4 else 16, "big"))


def _mask(match: Addresses) -> str:
    """What is left of an address that is looked up in a set of networks."""
    size = next(map(len, match.networks), 0)
    if match.prefix == 8 * size:
        return ""
    return f"& {address_text(netmask(match.prefix, size))} {'' if match.negated else '== '}"


def _set(match: Ports | Addresses, rule: InetRule, named: Sets) -> str:
    kind = element_type(match, rule)
    if name := named.get((kind, content(match))):
        return f"@{name}"
    if isinstance(match, Addresses) and match.networks:
        return f"{{ {', '.join(map(address_text, sorted(match.networks)))} }}"
    spans = _spans(kind, match.intervals)
    return spans[0] if len(spans) == 1 else f"{{ {', '.join(spans)} }}"


def _spans(kind: str, intervals: tuple[Interval, ...]) -> list[str]:
    if kind == "inet_service":
        return [range_text(low, high) for low, high in intervals]
    family: Family = "ipv4" if kind == "ipv4_addr" else "ipv6"
    return [interval_text(each, family) for each in intervals]


def _protocol(number: int) -> str:
    return PROTOCOLS.get(number, str(number))


def _bits(match: Mark | ConnMark) -> str:
    if match.mask == ALL_BITS:
        return f"{_NOT[match.negated]}{match.value:#010x}"
    return f"& {match.mask:#010x} {_NOT[match.negated] or '== '}{match.value:#010x}"


def _unknown(extension: UnknownMatch | UnknownTarget) -> str:
    """Unknown expressions, in a form that no program loads, so that the text is never mistaken for the whole rule."""
    return f"[{extension.name}: {len(extension.data)} bytes]"
