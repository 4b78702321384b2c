"""Expressions by which iptables-nft writes extensions that no plan has, and plain nftables rules in its tables.

Extensions get the data that the same extension has in an x_tables rule, so that both are the same value.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import name as text_of
from istio_init.kernel.nft.compat_decode_match import LOADS, number_of
from istio_init.kernel.nft.expressions import (
    ABOVE,
    AT_MOST,
    DESTINATION_AT,
    ELEMENT,
    EQUAL,
    NETWORK,
    SOURCE_AT,
    TRANSPORT,
    UNEQUAL,
    UNREAD,
)
from istio_init.kernel.xtables.foreign_entry import mask_text
from istio_init.kernel.xtables.foreign_options import match_options, target_options
from istio_init.model.rules import IPV4, TCP, DestinationPorts, PortRange, Protocol, SourcePorts, Verdict
from istio_init.model.unknown import UnknownMatch, UnknownTarget

if TYPE_CHECKING:
    from istio_init.kernel.nft.compat_decode_match import Expression
    from istio_init.model.rules import Match, Target

# With the padding that x_tables has: multiples of 8 bytes.
LIMIT_SCALE = 10000  # XT_LIMIT_SCALE
LIMIT_DATA = struct.Struct("=II32x")  # xt_rateinfo: the period in 1/10000 s, the burst, the kernel's own fields
TCP_DATA = struct.Struct("=4H4B4x")  # xt_tcp: both sides' ports, option, mask of flags, flags, inverted
NFLOG_DATA = struct.Struct("=IHHHxx64s4x")  # xt_nflog_info: length, group, threshold, flags, prefix
LOG_DATA = struct.Struct("=BB30s")  # xt_log_info: level, flags, prefix
NFLOG_PREFIX, LOG_PREFIX = 64, 30
LOWEST_LEVEL = 7  # debug
ALL_FLAGS = 0x3F  # those that iptables has names for
_NOT_SOURCE, _NOT_DESTINATION, _NOT_FLAGS = 1, 2, 4
HIGHEST_PORT = 65535
# Where TCP and UDP have both ports: the base, offset and length of a payload.
BOTH_PORTS = (TRANSPORT, 0, 4)
# Where IPv4's header has a fragment's offset: place, size, mask and the value of what is none.
FRAGMENT = (6, 2, b"\x1f\xff", b"\0\0")
_ALL_PORTS = PortRange(0, HIGHEST_PORT)
_COPY_LENGTH = 1  # XT_NFLOG_F_COPY_LEN
_NFTRACE = (12).to_bytes(4, "big")  # NFT_META_NFTRACE
_TRACED = b"\1"

# What compares, and ends what was loaded before it.
_ENDS = {"cmp", "range", "match", "counter", "limit", "log"}


def unread_match(expressions: list[Expression], elements: list[bytes]) -> UnknownMatch:
    """Conditions that no match of iptables holds; the name says of which kinds of expressions they are."""
    kinds = dict.fromkeys(kind for kind, _ in expressions if kind != "counter")
    pairs = zip(expressions, elements, strict=True)
    raw = b"".join(attribute(ELEMENT, each) for (kind, _), each in pairs if kind != "counter")
    return UnknownMatch(" ".join((UNREAD, *kinds)), 0, raw)


def rare_comparison(expressions: list[Expression], elements: list[bytes]) -> list[Match]:
    """One comparison as the matches that it is, such as one of both ports; else with what it compares, unread.

    ValueError unless the last expression compares what others here load.
    """
    if [kind for kind, _ in expressions] == ["payload", "cmp"]:
        loaded, compared = (attrs for _, attrs in expressions)
        place = tuple(int.from_bytes(loaded[each], "big") for each in (2, 3, 4))
        if place == BOTH_PORTS and loaded[1] == compared[1] and number_of(compared[2]) == EQUAL:
            value = attributes(compared[3])[1]
            source, destination = (int.from_bytes(value[at : at + 2], "big") for at in (0, 2))
            return [SourcePorts(PortRange(source, source)), DestinationPorts(PortRange(destination, destination))]
    match = _unread_comparison(expressions, elements)
    return [match.replace(options=_entry_options(expressions))]


def _entry_options(expressions: list[Expression]) -> str | None:
    """An address under a mask with holes, or fragments, as iptables-save prints them; None for anything else."""
    if [kind for kind, _ in expressions] != ["payload", "bitwise", "cmp"]:
        return None
    loaded, masked, compared = (attrs for _, attrs in expressions)
    base, offset, size = (int.from_bytes(loaded[each], "big") for each in (2, 3, 4))
    operator, value = number_of(compared[2]), attributes(compared[3])[1]
    if base != NETWORK or operator not in {EQUAL, UNEQUAL} or 4 not in masked or any(attributes(masked[5])[1]):
        return None
    mask = attributes(masked[4])[1]
    if (offset, size, mask, value) == FRAGMENT:
        return "-f" if operator == UNEQUAL else "! -f"
    option = "-s" if offset == SOURCE_AT.get(size) else "-d" if offset == DESTINATION_AT.get(size) else ""
    sign = "! " if operator == UNEQUAL else ""
    return f"{sign}{option} {address_text(value)}/{mask_text(mask)}" if option else None


def _unread_comparison(expressions: list[Expression], elements: list[bytes]) -> UnknownMatch:
    kind, attrs = expressions[-1]
    register = {"cmp": 1, "range": 1, "lookup": 2}.get(kind)
    if register is None or (kind == "lookup" and 3 in attrs):
        raise ValueError(kind)
    if not any(facts.get(LOADS.get(before, 0)) == attrs[register] for before, facts in expressions[:-1]):
        raise ValueError("a register that was loaded before")
    return unread_match(expressions, elements)


def in_order(matches: list[Match], ranks: dict[type, int]) -> list[Match]:
    """The matches in iptables' order: an address under a mask where other addresses are."""

    def rank(match: Match) -> int:
        words = match.options if isinstance(match, UnknownMatch) and match.name.startswith(UNREAD) else None
        return {"-s": 0, "-d": 1}.get((words or "").removeprefix("! ")[:2], ranks.get(type(match), 5))

    return sorted(matches, key=rank)


def open_range(operator: int, port: int) -> PortRange:
    """Ports from 0 or to the last one: iptables-nft 1.8.10 and later compare them with one end alone."""
    if operator == AT_MOST:
        return PortRange(0, port)
    if operator == ABOVE and port < HIGHEST_PORT:
        return PortRange(port + 1, HIGHEST_PORT)
    raise ValueError("a comparison that iptables-nft does not make")


def unpack_limit(attrs: dict[int, bytes]) -> UnknownMatch:
    """-m limit. ValueError for a limit on bytes, or one that holds above its rate."""
    rate, seconds, burst, kind, flags = (int.from_bytes(attrs.get(each, b""), "big") for each in range(1, 6))
    if kind or flags or not 0 < rate <= LIMIT_SCALE * seconds:
        raise ValueError("not a limit of iptables")
    period = LIMIT_SCALE * seconds // rate
    if period >> 32:
        raise ValueError("too long a period")
    data = LIMIT_DATA.pack(period, burst)
    return UnknownMatch("limit", 0, data, match_options("limit", 0, data))


def unpack_flags(mask: bytes, value: bytes, *, negated: bool) -> UnknownMatch:
    """-m tcp --tcp-flags."""
    if len(value) != 1 or (mask[0] | value[0]) > ALL_FLAGS:
        raise ValueError("flags without a name")
    return _tcp(None, None, (mask[0], value[0], _NOT_FLAGS * negated))


def _tcp(source: SourcePorts | None, destination: DestinationPorts | None, flags: tuple[int, int, int]) -> UnknownMatch:
    first, second = (each.ports if each else _ALL_PORTS for each in (source, destination))
    inverted = flags[2]
    inverted |= _NOT_SOURCE if source and source.negated else 0
    inverted |= _NOT_DESTINATION if destination and destination.negated else 0
    data = TCP_DATA.pack(first.low, first.high, second.low, second.high, 0, flags[0], flags[1], inverted)
    return UnknownMatch("tcp", 0, data, match_options("tcp", 0, data))


def with_ports(matches: list[Match]) -> list[Match]:
    """The matches, TCP's flags and ports as the one match that iptables has for both. ValueError where none has."""
    flags = [each for each in matches if isinstance(each, UnknownMatch) and _is_flags(each)]
    if not flags:
        return matches
    if not any(isinstance(each, Protocol) and each.number == TCP and not each.negated for each in matches):
        raise ValueError("flags without a protocol")
    sources = [each for each in matches if isinstance(each, SourcePorts)]
    destinations = [each for each in matches if isinstance(each, DestinationPorts)]
    if max(len(flags), len(sources), len(destinations)) > 1:
        raise ValueError("more than one match has")
    *_, mask, compared, inverted = TCP_DATA.unpack(flags[0].data)
    one = _tcp(sources[0] if sources else None, destinations[0] if destinations else None, (mask, compared, inverted))
    parts: list[Match] = [*flags, *sources, *destinations]
    at = min(matches.index(each) for each in parts)
    return [one if place == at else each for place, each in enumerate(matches) if place == at or each not in parts]


def _is_flags(match: UnknownMatch) -> bool:
    """Whether a match is one of `unpack_flags`: TCP flags alone."""
    if (match.name, match.revision, len(match.data)) != ("tcp", 0, TCP_DATA.size):
        return False
    *ports, option, _, _, inverted = TCP_DATA.unpack(match.data)
    return ports == [0, 65535, 0, 65535] and not option and inverted in {0, _NOT_FLAGS}


def unpack_effect(expressions: list[Expression], elements: list[bytes]) -> tuple[Target, int]:
    """What a rule that ends with neither a verdict nor an extension does, and how many of its expressions that is."""
    kind, attrs = expressions[-1]
    if kind == "log" and (target := _nflog(attrs) if 1 in attrs else _log(attrs)):
        return target, 1
    if kind == "lookup" and 3 not in attrs:
        return Verdict(""), 0  # a condition
    used = 1
    while used < len(expressions) and _loads(*expressions[-1 - used]):
        used += 1
    if used == 2 and kind == "meta" and (attrs.get(2), _constant(expressions[-2])) == (_NFTRACE, _TRACED):
        return UnknownTarget("TRACE", 0, b"", ""), used
    raw = b"".join(attribute(ELEMENT, each) for each in elements[-used:])
    options = _nflog_options(attrs) if kind == "log" and 1 in attrs else None
    return UnknownTarget(f"{UNREAD} {kind}", 0, raw, options), used


def _loads(kind: str, attrs: dict[int, bytes]) -> bool:
    return kind not in _ENDS and (kind != "lookup" or 3 in attrs)


def _constant(expression: Expression) -> bytes | None:
    kind, attrs = expression
    return attributes(attrs[2]).get(1) if kind == "immediate" else None


def _nflog(attrs: dict[int, bytes]) -> UnknownTarget | None:
    """-j NFLOG; None where the struct has no room for the prefix."""
    if len(_prefix(attrs)) >= NFLOG_PREFIX:
        return None
    data = NFLOG_DATA.pack(*_nflog_numbers(attrs), _prefix(attrs))
    return UnknownTarget("NFLOG", 0, data, target_options("NFLOG", 0, data, IPV4))


def _prefix(attrs: dict[int, bytes]) -> bytes:
    return text_of(attrs.get(2, b"")).encode(errors="surrogateescape")


def _nflog_numbers(attrs: dict[int, bytes]) -> tuple[int, int, int, int]:
    length, group, threshold = (int.from_bytes(attrs.get(each, b""), "big") for each in (3, 1, 4))
    return length, group, threshold, _COPY_LENGTH if 3 in attrs else 0


def _nflog_options(attrs: dict[int, bytes]) -> str | None:
    """The options of an NFLOG whose prefix is longer than its struct has room for, as iptables-save prints them."""
    prefix = _prefix(attrs)
    data = struct.pack(f"=IHHHxx{len(prefix) + 8}s", *_nflog_numbers(attrs), prefix)
    return target_options("NFLOG", 0, data, IPV4)


def _log(attrs: dict[int, bytes]) -> UnknownTarget | None:
    """-j LOG; None where the struct has no room for it."""
    prefix = text_of(attrs.get(2, b"")).encode(errors="surrogateescape")
    level, flags = int.from_bytes(attrs.get(5, b"\4"), "big"), int.from_bytes(attrs.get(6, b""), "big")
    if len(prefix) >= LOG_PREFIX or level > LOWEST_LEVEL or flags > 0xFF:
        return None
    data = LOG_DATA.pack(level, flags, prefix)
    return UnknownTarget("LOG", 0, data, target_options("LOG", 0, data, IPV4))
