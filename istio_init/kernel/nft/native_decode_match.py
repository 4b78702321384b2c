"""The matches of an inet rule from its expressions, as native_encode.py writes them, or nft."""

from __future__ import annotations

from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import name
from istio_init.kernel.nft.expressions import (
    AT_LEAST,
    AT_MOST,
    CT_MARK,
    CT_STATE,
    DESTINATION_AT,
    EQUAL,
    IIFNAME,
    L4PROTO,
    MARK,
    NATIVE,
    NETWORK,
    NFPROTO,
    OIFNAME,
    SKGID,
    SKUID,
    SOURCE_AT,
    TRANSPORT,
    UNEQUAL,
)
from istio_init.kernel.nft.native_encode import (
    FAMILY_NUMBERS,
)
from istio_init.kernel.nft.native_encode_rare import ALL_BITS, STATES
from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    Mark,
)
from istio_init.model.inet import Addresses, Ports
from istio_init.model.rules import (
    IPV4,
    IPV6,
    TCP,
    UDP,
    InInterface,
    OutInterface,
    Owner,
    Protocol,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, TypeAlias

    from istio_init.model.inet import Content, InetMatch, Interval
    from istio_init.model.rules import Family

    # An expression's name and its attributes.
    Expression: TypeAlias = tuple[str, dict[int, bytes]]
    # A set's element type, and its elements: intervals, or the values of a named hash table.
    SetContents: TypeAlias = tuple[str, Content]


FAMILY_OF = {number: family for family, number in FAMILY_NUMBERS.items()}

_INVERTED = 1  # NFT_LOOKUP_F_INV

BYTE_ORDER: Literal["little", "big"] = "little" if NATIVE.pack(1)[0] else "big"


class MatchReader:
    """The matches at the beginning of a rule, and the family that they require."""

    def __init__(self, sets: Mapping[str, SetContents], family: Family | None) -> None:
        self.family = family
        self._matches: list[InetMatch] = []
        self._sets = sets
        self._protocol = 0

    def matches(self) -> tuple[InetMatch, ...]:
        """The matches in order. A port says its protocol, so that needs no match of its own."""
        protocols = {match.protocol for match in self._matches if isinstance(match, Ports)}
        if not protocols:
            return tuple(self._matches)
        return tuple([match for match in self._matches if not _is_implied(match, protocols)])

    def read(self, expressions: Sequence[Expression]) -> int:
        """Read as many expressions as are matches; returns their number."""
        at = 0
        while at < len(expressions):
            try:
                at = self._read(expressions, at)
            except (KeyError, ValueError, IndexError):
                break
        return at

    def _read(self, expressions: Sequence[Expression], at: int) -> int:
        """Read one match, which loads something, may change it, and tests it; returns where the next begins."""
        kind, attrs = expressions[at]
        load = loaded_field(kind, attrs)
        register = attrs[1]
        at += 1
        bits, swapped = b"", False
        if expressions[at][0] == "bitwise":
            bits = _bits(expressions[at][1], register)
            at += 1
        elif expressions[at][0] == "byteorder":
            swapped = True
            at += 1
        test, attrs = expressions[at]
        if attrs[2 if test == "lookup" else 1] != register:
            raise ValueError("another register")
        at += 1
        if test == "lookup":
            spans, negated = self._lookup(attrs)
            self._add_field(load, bits, spans, negated=negated)
            return at
        negated = number_of(attrs[2]) == UNEQUAL
        low = high = constant_of(attrs[3])
        if test == "range":
            high = constant_of(attrs[4])
        elif number_of(attrs[2]) == AT_LEAST:
            test, attrs = expressions[at]
            if test != "cmp" or attrs[1] != register or number_of(attrs[2]) != AT_MOST:
                raise ValueError("not a range")
            high = constant_of(attrs[3])
            at += 1
        elif test != "cmp" or number_of(attrs[2]) not in {EQUAL, UNEQUAL}:
            raise ValueError("not a comparison")
        self._add(load, bits, (low, high), negated=negated, swapped=swapped)
        return at

    def _lookup(self, attrs: dict[int, bytes]) -> tuple[SetContents, bool]:
        """A set's contents, and whether the value must not be in it."""
        flags = number_of(attrs.get(5, b""))
        if 3 in attrs or flags & ~_INVERTED:
            raise ValueError("not a plain lookup")
        return self._sets[name(attrs[1])], bool(flags)

    def _add(
        self, load: tuple[object, ...], bits: bytes, values: tuple[bytes, bytes], *, negated: bool, swapped: bool
    ) -> None:
        low, high = values
        if load[0] == "payload":
            self._add_field(load, bits, ("", ((number_of(low), number_of(high)),)), negated=negated)
            return
        key = load[1]
        if load[0] == "meta" and low == high and not bits and not swapped:
            if key == NFPROTO and not negated:
                family = FAMILY_OF[number_of(low)]
                if self.family not in {None, family}:
                    raise ValueError("two families")
                self.family = family
                return
            if key == L4PROTO and len(low) == 1:
                self._protocol = 0 if negated else low[0]
                self._matches.append(Protocol(low[0], negated))
                return
            if key in {IIFNAME, OIFNAME}:
                kind = InInterface if key == IIFNAME else OutInterface
                self._matches.append(kind(_interface_name(low), negated))
                return
        self._matches.append(_of_number(load, bits, values, negated=negated, swapped=swapped))

    def _add_field(self, load: tuple[object, ...], bits: bytes, contents: SetContents, *, negated: bool) -> None:
        """A match of a port or an address, of which all or, with `bits` or in the load, a prefix is compared."""
        kind, values = contents
        _, base, at, length = load
        if base == TRANSPORT and length == 2 and not bits and self._protocol in {TCP, UDP}:
            if kind not in {"", "inet_service"} or at not in {0, 2} or isinstance(values, frozenset):
                raise ValueError("not a port")
            self._matches.append(Ports(self._protocol, "dport" if at else "sport", values, negated))
            return
        size = {IPV4: 4, IPV6: 16}[self.family] if self.family else 0
        if base != NETWORK or not size or at not in {SOURCE_AT[size], DESTINATION_AT[size]}:
            raise ValueError("not an address")
        side: Literal["saddr", "daddr"] = "saddr" if at == SOURCE_AT[size] else "daddr"
        if kind not in {"", "ipv4_addr" if size == 4 else "ipv6_addr"} or (kind and length != size):
            raise ValueError("not a set of addresses")
        if isinstance(values, frozenset):
            self._matches.append(Addresses(side, (), negated, values, _prefix(values, bits, size)))
            return
        if kind and bits:
            raise ValueError("a mask before a set of intervals")
        if not kind:
            values = (_prefix_interval(values[0], bits, int(length), size),)  # type: ignore[call-overload]
        self._matches.append(Addresses(side, values, negated))


def _is_implied(match: InetMatch, protocols: set[int]) -> bool:
    return isinstance(match, Protocol) and not match.negated and match.number in protocols


def number_of(value: bytes) -> int:
    """A number that nftables has in network order."""
    return int.from_bytes(value, "big")


def constant_of(attrs: bytes) -> bytes:
    """The value in nested NFTA_DATA attributes."""
    return attributes(attrs)[1]


def loaded_field(kind: str, attrs: dict[int, bytes]) -> tuple[object, ...]:
    """What an expression loads: a key of meta or ct, or base, offset and length of a part of a header."""
    if kind == "payload" and attrs.keys() == {1, 2, 3, 4}:
        return kind, number_of(attrs[2]), number_of(attrs[3]), number_of(attrs[4])
    if kind in {"meta", "ct"} and attrs.keys() == {1, 2}:
        return kind, number_of(attrs[2])
    raise ValueError("not a load")


def _bits(attrs: dict[int, bytes], register: bytes) -> bytes:
    """The bits that a bitwise expression keeps."""
    if attrs[1] != register or attrs[2] != register or any(constant_of(attrs[5])) or any(attrs.get(6, b"")):
        raise ValueError("not a mask")
    return constant_of(attrs[4])


def _prefix(networks: frozenset[bytes], bits: bytes, size: int) -> int:
    """The length of networks of which these are the first addresses, where `bits` of a packet's are looked up."""
    hosts = ((1 << 8 * size) - 1) ^ number_of(bits) if bits else 0
    if (bits and len(bits) != size) or hosts & (hosts + 1) or any(number_of(each) & hosts for each in networks):
        raise ValueError("not networks of one length")
    return 8 * size - hosts.bit_length()


def _prefix_interval(span: Interval, bits: bytes, length: int, size: int) -> Interval:
    """The addresses whose first `length` bytes, or those of `bits`, are as given."""
    low, high = span
    if not 0 < length <= size or (bits and (length != size or len(bits) != size)):
        raise ValueError("not a prefix")
    rest = 8 * (size - length)
    if bits:
        hosts = ((1 << 8 * size) - 1) ^ number_of(bits)
        if hosts & (hosts + 1) or low & hosts or low != high:
            raise ValueError("not a prefix")
        return low, low | hosts
    return low << rest, (high << rest) | ((1 << rest) - 1)


def _interface_name(value: bytes) -> str:
    """A whole name, which is padded with zeros, or the beginning of one, which in iptables ends in +."""
    text = value.rstrip(b"\0").decode(errors="surrogateescape")
    return text if value.endswith(b"\0") else f"{text}+"


def _of_number(
    load: tuple[object, ...], bits: bytes, values: tuple[bytes, bytes], *, negated: bool, swapped: bool
) -> InetMatch:
    """A match of a number of 32 bits in the machine's order, or, `swapped`, in network order."""
    low, high = values
    if len(low) != 4 or len(high) != 4 or (bits and len(bits) != 4) or (low != high and not swapped):
        raise ValueError("not a number")
    source, key = load
    if source == "meta" and key in {SKUID, SKGID} and not bits:
        first, last = (number_of(low), number_of(high)) if swapped else (NATIVE.unpack(low)[0], NATIVE.unpack(high)[0])
        return Owner("uid" if key == SKUID else "gid", first, last, negated)
    if swapped:
        raise ValueError("not a mark")
    value, mask = NATIVE.unpack(low)[0], NATIVE.unpack(bits)[0] if bits else ALL_BITS
    if source == "meta" and key == MARK:
        return Mark(value, mask, negated)
    if source == "ct" and key == CT_MARK:
        return ConnMark(value, mask, negated)
    if source == "ct" and key == CT_STATE and bits and negated and not value and not mask & ~sum(STATES.values()):
        return CtState(tuple(state for state in CT_STATES if mask & STATES.get(state, 0)))
    raise ValueError("a key that iptables has no match for")
