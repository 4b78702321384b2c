"""The matches of a rule from its expressions, as iptables-nft writes them."""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.nft.expressions import (
    DESTINATION_AT,
    EQUAL,
    IIFNAME,
    L4PROTO,
    MARK,
    NATIVE,
    NETWORK,
    OIFNAME,
    SOURCE_AT,
    TRANSPORT,
    UNEQUAL,
)
from istio_init.kernel.xtables.decode_match import unpack_match
from istio_init.kernel.xtables.encode_match import HEAD
from istio_init.model.extensions import Mark
from istio_init.model.rules import (
    IPV4,
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    Network,
    OutInterface,
    PortRange,
    Protocol,
    Source,
    SourcePorts,
)
from istio_init.model.unknown import UnknownMatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from istio_init.model.rules import Family, Match

    # An expression's name and its attributes.
    Expression: TypeAlias = tuple[str, dict[int, bytes]]
    # The content of a register: a key of meta, or base, offset and length of the loaded bytes; and the mask that was
    # applied to them, None for none.
    Loaded: TypeAlias = tuple[tuple[int, ...], bytes | None]


_WORD = Struct(">i")
# Where headers have the protocol (IPv4) and TCP's flags.
PROTOCOL_AT, FLAGS_AT = (NETWORK, 9, 1), (TRANSPORT, 13, 1)

# By kind of expression: the attribute that names the register it loads.
LOADS = {"meta": 1, "payload": 1, "bitwise": 2, "byteorder": 2, "ct": 1, "rt": 1, "fib": 1, "exthdr": 1, "numgen": 1}
LOADS |= {"socket": 2, "hash": 2, "immediate": 1}
IPTABLES_RANK: dict[type, int] = {Source: 0, Destination: 1, InInterface: 2, OutInterface: 3, Protocol: 4}


def number_of(value: bytes) -> int:
    """A number of 32 bits in network order."""
    number: int = _WORD.unpack(value)[0]
    return number


def xt_element(attrs: dict[int, bytes]) -> bytes:
    """An xt_entry_match or xt_entry_target."""
    return HEAD.pack(HEAD.size + len(attrs[3]), attrs[1].rstrip(b"\0"), number_of(attrs[2])) + attrs[3]


class CompatMatchReader:
    """Reads the matches of a rule. KeyError or ValueError for expressions that can't be separated."""

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
                from istio_init.kernel.nft.compat_decode_rare import rare_comparison

                both = rare_comparison(expressions[begin : at + 1], elements[begin : at + 1])
                matches += both[:-1]
                match = both[-1]
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
        if rare:
            from istio_init.kernel.nft.compat_decode_rare import in_order

            return in_order(matches, IPTABLES_RANK)
        return sorted(matches, key=lambda match: IPTABLES_RANK.get(type(match), 5))

    def _load(self, kind: str, attrs: dict[int, bytes]) -> bool:
        """Whether an expression loads a register, which is noted: None for what iptables-nft would not load."""
        match kind:
            case "meta" if 1 in attrs:
                self._registers[number_of(attrs[1])] = ((number_of(attrs[2]),), None)
            case "payload" if 1 in attrs:
                place = (number_of(attrs[2]), number_of(attrs[3]), number_of(attrs[4]))
                self._registers[number_of(attrs[1])] = (place, None)
            case "bitwise":
                loaded = self._registers[number_of(attrs[1])]
                keeps = loaded and loaded[1] is None and 4 in attrs and 5 in attrs and not any(attributes(attrs[5])[1])
                self._registers[number_of(attrs[2])] = (
                    (loaded[0], attributes(attrs[4])[1]) if loaded and keeps else None
                )
            case _ if (register := LOADS.get(kind)) in attrs:
                self._registers[number_of(attrs[register])] = None
            case _:
                return False
        return True

    def _match(self, kind: str, attrs: dict[int, bytes]) -> Match:
        match kind:
            case "cmp" | "range":
                return self._compared(kind, attrs)
            case "match":
                return unpack_match(xt_element(attrs), self._family)
            case "limit":
                from istio_init.kernel.nft.compat_decode_rare import unpack_limit

                return unpack_limit(attrs)
            case _:
                raise ValueError(kind)

    def _compared(self, kind: str, attrs: dict[int, bytes]) -> Match:
        loaded = self._registers[number_of(attrs[1])]
        if loaded is None:
            raise ValueError("an unknown load")
        place, mask = loaded
        operator = number_of(attrs[2])
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
