"""The part of an entry that every rule has: addresses, interfaces, protocol (struct ipt_ip, struct ip6t_ip6).

From <linux/netfilter_ipv4/ip_tables.h> and <linux/netfilter_ipv6/ip6_tables.h>. Native byte order, addresses
in network order. An interface's mask is 0xff for every byte that counts: the name and its NUL, or only the
bytes before a + at the end.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.model.rules import IPV4, IPV6, Destination, InInterface, Network, OutInterface, Protocol, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from istio_init.model.rules import Family, Match

    HeaderMatch: TypeAlias = Source | Destination | InInterface | OutInterface | Protocol
    Fields: TypeAlias = list[Any]

# The name of the UnknownMatch that stands for a whole header which the other matches can't express (masks with
# gaps, fragments, a type of service). The blank keeps it apart from every extension.
HEADER = "ip header"

# The fields by position; flags and inversions from the end, as IPv6 has a type of service before them.
SOURCE, DESTINATION, SOURCE_MASK, DESTINATION_MASK, IN, OUT, _IN_MASK, _OUT_MASK, PROTOCOL = range(9)
FLAGS, INVERTED = -2, -1

# IPT_INV_*, IP6T_INV_*, XT_INV_PROTO
NOT_IN, NOT_OUT, NOT_SOURCE, NOT_DESTINATION, NOT_PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x40

NO_INTERFACE = bytes(16)


class EntryLayout:
    """What differs between the families; sizes in bytes. Not a Record, which would cost each start more."""

    def __init__(self, family: Family, fields: str, size: int, protocol_flag: int, goto_flag: int) -> None:
        self.any_address, numbers, self.flags_at = (bytes(4), 3, 82) if family == IPV4 else (bytes(16), 4, 131)
        self.family, self.struct = family, Struct(fields)
        self.size = size  # of the entry before its matches: these fields, nfcache, two offsets, comefrom, counters
        self.protocol_flag = protocol_flag  # says that the protocol counts
        self.goto_flag = goto_flag  # says that a jump is a goto; both are in the byte at `flags_at`
        self.counters_at = self.struct.size + 8  # offset of comefrom and counters
        self.uncounted = bytes(size - self.counters_at)  # these, zero
        # The fields of a header without a condition.
        self.blank = (*[self.any_address] * 4, *[NO_INTERFACE] * 4, *[0] * numbers)


LAYOUTS: dict[Family, EntryLayout] = {
    IPV4: EntryLayout(IPV4, "=4s4s4s4s16s16s16s16sHBB", 112, 0, 0x02),
    IPV6: EntryLayout(IPV6, "=16s16s16s16s16s16s16s16sHBBB3x", 168, 0x01, 0x04),
}


def put(match: HeaderMatch, fields: Fields, layout: EntryLayout) -> None:
    """Write one match into a header's fields. ValueError if the fields are in use, or can't hold the value."""
    PUTS[type(match)](match, fields, layout)


def put_goto(fields: Fields, layout: EntryLayout) -> None:
    """Make the rule's jump a goto."""
    fields[FLAGS] |= layout.goto_flag


def _put_protocol(match: Protocol, fields: Fields, layout: EntryLayout) -> None:
    if fields[PROTOCOL]:
        raise ValueError("two protocols")
    fields[PROTOCOL] = match.number
    fields[FLAGS] |= layout.protocol_flag
    fields[INVERTED] |= NOT_PROTOCOL * match.negated


def _put_source(match: Source, fields: Fields, layout: EntryLayout) -> None:
    _put_network(match.network, fields, SOURCE, layout)
    fields[INVERTED] |= NOT_SOURCE * match.negated


def _put_destination(match: Destination, fields: Fields, layout: EntryLayout) -> None:
    _put_network(match.network, fields, DESTINATION, layout)
    fields[INVERTED] |= NOT_DESTINATION * match.negated


def _put_network(network: Network, fields: Fields, place: int, layout: EntryLayout) -> None:
    size = len(layout.any_address)
    if len(network.address) != size or not 0 <= network.prefix <= size * 8:
        raise ValueError(f"{network!r} is not a network of {layout.family}")
    mask_place = place + SOURCE_MASK
    if fields[mask_place] is not layout.any_address:
        raise ValueError("two networks of one side")
    fields[place] = network.address
    fields[mask_place] = netmask(network.prefix, size)


def netmask(prefix: int, size: int) -> bytes:
    """The mask of a prefix length for an address of so many bytes."""
    bits = size * 8
    return ((1 << bits) - (1 << (bits - prefix))).to_bytes(size)


def _put_in(match: InInterface, fields: Fields, layout: EntryLayout) -> None:  # noqa: ARG001 (they all have one shape)
    _put_interface(match.name, fields, IN)
    fields[INVERTED] |= NOT_IN * match.negated


def _put_out(match: OutInterface, fields: Fields, layout: EntryLayout) -> None:  # noqa: ARG001
    _put_interface(match.name, fields, OUT)
    fields[INVERTED] |= NOT_OUT * match.negated


def _put_interface(name: str, fields: Fields, place: int) -> None:
    if fields[place] is not NO_INTERFACE:
        raise ValueError("two interfaces of one side")
    if name not in _interfaces:
        _interfaces[name] = _interface(name)
    fields[place], fields[place + _IN_MASK - IN] = _interfaces[name]


# By name, the fields of an interface: most rules that have one have lo.
_interfaces: dict[str, tuple[bytes, bytes]] = {}


def _interface(name: str) -> tuple[bytes, bytes]:
    """An interface's name and its mask."""
    encoded = name.encode(errors="surrogateescape")
    counting = len(encoded) - 1 if encoded.endswith(b"+") else len(encoded) + 1
    if not 0 < len(encoded) < len(NO_INTERFACE):
        raise ValueError(f"an interface's name has 1 to {len(NO_INTERFACE) - 1} bytes")
    return encoded.ljust(len(NO_INTERFACE), b"\0"), (b"\xff" * counting).ljust(len(NO_INTERFACE), b"\0")


# The function that writes each kind of match.
PUTS: dict[type, Callable[[Any, Fields, EntryLayout], None]] = {
    Protocol: _put_protocol,
    Destination: _put_destination,
    Source: _put_source,
    InInterface: _put_in,
    OutInterface: _put_out,
}


def whole_of(match: Match) -> bytes:
    """The header that a match of `whole` stands for; empty for any other match."""
    if not hasattr(match, "data"):
        return b""  # no UnknownMatch, and so no reason to read in what that is
    from istio_init.model.unknown import UnknownMatch

    return match.data if isinstance(match, UnknownMatch) and match.name == HEADER else b""
