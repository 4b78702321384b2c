"""Decodes rules of iptables-nft's tables from netlink attributes: those of compat_encode.py, and other programs'."""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import name as text_of
from istio_init.kernel.nft.expressions import (
    DESTINATION_AT,
    EQUAL,
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    EXPRESSIONS,
    GOTO,
    IIFNAME,
    L4PROTO,
    MARK,
    NATIVE,
    NETWORK,
    OIFNAME,
    SIGNATURE,
    SOURCE_AT,
    TRANSPORT,
    UNEQUAL,
    USERDATA,
    VERDICTS,
)
from istio_init.kernel.xtables.decode_match import unpack_match, unpack_target
from istio_init.kernel.xtables.encode_match import HEAD
from istio_init.model.extensions import Mark
from istio_init.model.rules import (
    IPV4,
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    PortRange,
    Protocol,
    Rule,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import UnknownMatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    from istio_init.model.rules import Family, Match, Target

    # An expression's name and its attributes.
    Expression: TypeAlias = tuple[str, dict[int, bytes]]
    # What a register holds: a key of meta, or base, offset and length of what was read from the packet; and the
    # mask that was laid upon it, None for none.
    Loaded: TypeAlias = tuple[tuple[int, ...], bytes | None]

_VERDICT_NAMES = {code: verdict for verdict, code in VERDICTS.items()}
_WORD = Struct(">i")
# Where headers have the protocol (IPv4) and TCP's flags.
PROTOCOL_AT, FLAGS_AT = (NETWORK, 9, 1), (TRANSPORT, 13, 1)

# By kind of expression: the attribute that names the register it loads.
LOADS = {"meta": 1, "payload": 1, "bitwise": 2, "byteorder": 2, "ct": 1, "rt": 1, "fib": 1, "exthdr": 1, "numgen": 1}
LOADS |= {"socket": 2, "hash": 2, "immediate": 1}
# What may end a rule that has no target.
_CONDITIONS = {"counter", "match", "cmp", "range", "limit"}
_IPTABLES_RANK: dict[type, int] = {Source: 0, Destination: 1, InInterface: 2, OutInterface: 3, Protocol: 4}


class RuleReader:
    """Unpacks rules of one family; expressions that many have in common are taken apart once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._taken_apart: dict[bytes, Expression] = {}
        self._targets: dict[bytes, tuple[Target, int]] = {}

    def unpack(self, attrs: dict[int, bytes]) -> Rule:
        """The rule in a message's attributes.

        A comparison that iptables-nft would not write becomes an UnknownMatch of its expressions, an effect that is
        no target an UnknownTarget. Where what belongs together cannot be told, one UnknownMatch bears all conditions.
        """
        elements = list(_elements(attrs.get(EXPRESSIONS, b"")))
        target, used = self._target(elements)
        conditions = elements[: len(elements) - used]
        apart = [self._apart(each) for each in conditions]
        try:
            matches = tuple(_Reader(self._family).matches(apart, conditions))
        except (KeyError, ValueError):
            from istio_init.kernel.nft.compat_decode_rare import unread_match

            matches = (unread_match(apart, conditions),)
        return Rule(matches, target, SIGNATURE in attrs.get(USERDATA, b""))

    def _apart(self, element: bytes) -> Expression:
        parsed = self._taken_apart.get(element)
        if parsed is None:
            parsed = self._taken_apart[element] = _name(element), _data(element)
        return parsed

    def _target(self, elements: list[bytes]) -> tuple[Target, int]:
        last = elements[-1] if elements else b""
        target = self._targets.get(last)
        if target is None:
            target = self._read_target(elements)
            if target[1] == 1:
                self._targets[last] = target
        return target

    def _read_target(self, elements: list[bytes]) -> tuple[Target, int]:
        target, used = _target(elements, self._family)
        if used or not elements or _name(elements[-1]) in _CONDITIONS:
            return target, used
        from istio_init.kernel.nft.compat_decode_rare import unpack_effect

        return unpack_effect([self._apart(each) for each in elements], elements)


def counted(attrs: dict[int, bytes]) -> tuple[int, int] | None:
    """How many packets and bytes the rule of a message's attributes has met; None where it has no counter."""
    counters = (each for each in _elements(attrs.get(EXPRESSIONS, b"")) if _name(each) == "counter")
    return next((counter_numbers(_data(each)) for each in counters), None)


def counter_numbers(attrs: dict[int, bytes]) -> tuple[int, int]:
    """NFTA_COUNTER_PACKETS and NFTA_COUNTER_BYTES."""
    return int.from_bytes(attrs[2], "big"), int.from_bytes(attrs[1], "big")


def _elements(data: bytes) -> Iterator[bytes]:
    """The expressions of a list, each as its attributes."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], _ORDER)
        yield data[at + 4 : at + length]
        at += (length + 3) & ~3


_ORDER: Any = "little" if Struct("=H").pack(1) == b"\1\0" else "big"


def _name(element: bytes) -> str:
    return text_of(attributes(element)[EXPRESSION_NAME])


def _data(element: bytes) -> dict[int, bytes]:
    return attributes(attributes(element).get(EXPRESSION_DATA, b""))


def _number(value: bytes) -> int:
    number: int = _WORD.unpack(value)[0]
    return number


def _target(elements: list[bytes], family: Family) -> tuple[Target, int]:
    """The rule's target, and how many of the last expressions it is."""
    if elements:
        kind, attrs = _name(elements[-1]), _data(elements[-1])
        if kind == "immediate":
            verdict = attributes(attributes(attrs[2]).get(2, b""))
            code = _number(verdict[1]) if 1 in verdict else 0
            if 2 in verdict:
                return Jump(text_of(verdict[2]), code == GOTO), 1
            if 1 in verdict and code in _VERDICT_NAMES:
                return Verdict(_VERDICT_NAMES[code]), 1  # type: ignore[arg-type]
        if kind == "target":
            return unpack_target(_element(attrs), family), 1
    return Verdict(""), 0


def _element(attrs: dict[int, bytes]) -> bytes:
    """An xt_entry_match or xt_entry_target."""
    return HEAD.pack(HEAD.size + len(attrs[3]), attrs[1].rstrip(b"\0"), _number(attrs[2])) + attrs[3]


class _Reader:
    """Reads a rule's expressions; KeyError or ValueError for what cannot be taken apart."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._size = 4 if family == IPV4 else 16
        self._registers: dict[int, Loaded | None] = {}

    def matches(self, expressions: list[Expression], elements: list[bytes]) -> list[Match]:
        """All matches of a rule, in iptables' order; `elements` are the expressions' bytes."""
        matches: list[Match] = []
        begin = 0  # the first expression of those that load what the next one compares
        rare = False
        for at, (kind, attrs) in enumerate(expressions):
            if kind == "counter":
                if begin != at:
                    raise ValueError("a counter between what belongs together")
                begin = at + 1
                continue
            if self._load(kind, attrs):
                continue
            try:
                match = self._match(kind, attrs)
            except (KeyError, ValueError):
                from istio_init.kernel.nft.compat_decode_rare import unread_comparison

                match = unread_comparison(expressions[begin : at + 1], elements[begin : at + 1])
            rare = rare or isinstance(match, UnknownMatch)
            matches.append(match)
            begin = at + 1
        if begin != len(expressions):
            raise ValueError("a load without a comparison")
        if rare:
            from istio_init.kernel.nft.compat_decode_rare import with_ports

            matches = with_ports(matches)
        for match in matches:
            if isinstance(match, SourcePorts | DestinationPorts) and not _has_transport(matches):
                raise ValueError("a port without a protocol")
        return sorted(matches, key=lambda match: _IPTABLES_RANK.get(type(match), 5))

    def _load(self, kind: str, attrs: dict[int, bytes]) -> bool:
        """Whether an expression loads a register, which is noted: None for what iptables-nft would not load."""
        match kind:
            case "meta" if 1 in attrs:
                self._registers[_number(attrs[1])] = ((_number(attrs[2]),), None)
            case "payload" if 1 in attrs:
                place = (_number(attrs[2]), _number(attrs[3]), _number(attrs[4]))
                self._registers[_number(attrs[1])] = (place, None)
            case "bitwise":
                loaded = self._registers[_number(attrs[1])]
                keeps = loaded and loaded[1] is None and 4 in attrs and 5 in attrs and not any(attributes(attrs[5])[1])
                self._registers[_number(attrs[2])] = (loaded[0], attributes(attrs[4])[1]) if loaded and keeps else None
            case _ if (register := LOADS.get(kind)) in attrs:
                self._registers[_number(attrs[register])] = None
            case _:
                return False
        return True

    def _match(self, kind: str, attrs: dict[int, bytes]) -> Match:
        match kind:
            case "cmp" | "range":
                return self._compared(kind, attrs)
            case "match":
                return unpack_match(_element(attrs), self._family)
            case "limit":
                from istio_init.kernel.nft.compat_decode_rare import unpack_limit

                return unpack_limit(attrs)
            case _:
                raise ValueError(kind)

    def _compared(self, kind: str, attrs: dict[int, bytes]) -> Match:
        loaded = self._registers[_number(attrs[1])]
        if loaded is None:
            raise ValueError("an unknown load")
        place, mask = loaded
        operator = _number(attrs[2])
        negated = operator == UNEQUAL
        low = attributes(attrs[3])[1]
        high = attributes(attrs[4])[1] if kind == "range" else low
        if len(place) == 3 and place[0] == TRANSPORT and place[2] == 2 and place[1] in {0, 2} and mask is None:
            if operator in {EQUAL, UNEQUAL}:
                ports = PortRange(int.from_bytes(low, "big"), int.from_bytes(high, "big"))
            else:
                from istio_init.kernel.nft.compat_decode_rare import open_range

                ports = open_range(operator, int.from_bytes(low, "big"))
            return DestinationPorts(ports, negated) if place[1] else SourcePorts(ports, negated)
        if kind == "range" or operator not in {EQUAL, UNEQUAL}:
            raise ValueError("a range, greater or less")
        if len(place) == 3:
            return self._of_packet(place, mask, low, negated=negated)
        return _of_meta(place[0], mask, low, negated=negated)

    def _of_packet(self, place: tuple[int, ...], mask: bytes | None, value: bytes, *, negated: bool) -> Match:
        """A comparison of the packet's bytes for equality."""
        if place == PROTOCOL_AT and self._family == IPV4 and mask is None:
            # iptables-nft 1.8.10 and later: IPv4's header has the protocol at one place.
            return _protocol(value, negated=negated)
        if place == FLAGS_AT and mask is not None:
            from istio_init.kernel.nft.compat_decode_rare import unpack_flags

            return unpack_flags(mask, value, negated=negated)
        return self._network(place, mask, value, negated=negated)

    def _network(self, place: tuple[int, ...], mask: bytes | None, value: bytes, *, negated: bool) -> Match:
        base, offset, length = place
        if base != NETWORK or not 0 < length <= self._size or len(value) != length:
            raise ValueError("not an address")
        prefix = length * 8
        if mask is not None:
            bits = int.from_bytes(mask, "big")
            prefix = bits.bit_count()
            if length != self._size or bits != ((1 << prefix) - 1) << (length * 8 - prefix):
                raise ValueError("not a prefix")
        network = Network(value + bytes(self._size - length), prefix)
        if offset == SOURCE_AT[self._size]:
            return Source(network, negated)
        if offset == DESTINATION_AT[self._size]:
            return Destination(network, negated)
        raise ValueError("not an address")


def _protocol(value: bytes, *, negated: bool) -> Protocol:
    if len(value) != 1 or value == b"\0":
        raise ValueError("not a protocol that iptables can name: 0 is every one")
    return Protocol(value[0], negated)


def _has_transport(matches: list[Match]) -> bool:
    """Whether a rule is about TCP or UDP."""
    return any(isinstance(each, Protocol) and each.number in {TCP, UDP} and not each.negated for each in matches)


def _of_meta(key: int, mask: bytes | None, value: bytes, *, negated: bool) -> Match:
    if key == MARK and len(value) == 4:
        bits = 0xFFFFFFFF if mask is None else NATIVE.unpack(mask)[0]
        return Mark(NATIVE.unpack(value)[0], bits, negated)
    if mask is None and key == L4PROTO:
        return _protocol(value, negated=negated)
    if mask is None and key in {IIFNAME, OIFNAME}:
        kind = InInterface if key == IIFNAME else OutInterface
        exact = value.endswith(b"\0")
        name = value.rstrip(b"\0").decode(errors="surrogateescape")
        return kind(name if exact else f"{name}+", negated)
    raise ValueError("a key that iptables has no match for")
