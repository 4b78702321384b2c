"""A pod's capture as the programs read it: struct pod, and members of the trie (image/bpf/capture.bpf.c).

Addresses are kept as IPv6, IPv4 as ::ffff:a.b.c.d, in network order; everything else is in the machine's order, little
endian. A range of ports is kept as the fewest prefixes of a 32-bit number, so that one trie answers all questions.
"""

from __future__ import annotations

from _struct import Struct, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from istio_init.model.rules import Network, PortRange
    from istio_init.model.socket_capture import SocketCapture

    # Kind, length of the prefix in bits, 16 bytes.
    Member: TypeAlias = tuple[int, int, bytes]

MAX_OWNERS = 4
_NOBODY = 0xFFFFFFFF  # fills unused entries of ids; no process has it

POD = Struct("<I4I4I4H4s16s4s4sI")
MEMBER_BYTES = 32
NOTE_BYTES = 24  # struct note

# enum flag
IN_ALL, IN_LIST, OUT_ALL, OUT_NETWORKS, OUT_NOT_NETWORKS, OUT_PORTS, OUT_NOT_PORTS = (1 << bit for bit in range(7))
GROUPS, NOT_GROUPS, DNS_ALL, DNS_SERVERS, MORE_OWN, LOOPBACK_CAPTURED, TPROXY, IPV6 = (1 << bit for bit in range(7, 15))
# enum kind; 0 is the pod's first member, from which the others are found
_IPV6 = 16  # of a network's kind: ::/0 has no IPv4 address in it, though these are kept as IPv6
FIRST, IN_PORT, OUT_NETWORK, OUT_NOT_NETWORK, OUT_PORT, OUT_NOT_PORT, GROUP, DNS_SERVER, OWN = range(9)

_INBOUND = {"all": IN_ALL, "list": IN_LIST, "none": 0}
_OUTBOUND = {"all": OUT_ALL, "list": OUT_NETWORKS, "none": 0}
_DNS = {"all": DNS_ALL, "list": DNS_SERVERS, "none": 0}


def pod_value(capture: SocketCapture) -> bytes:
    """The bytes of struct pod. ValueError for more than MAX_OWNERS users or groups."""
    ipv4, ipv6 = _addresses(capture)
    ids = (*_owners(capture.uids), *_owners(capture.gids))
    loopback = capture.loopback
    bits = (0xFFFFFFFF << (32 - loopback.prefix)) & 0xFFFFFFFF
    return POD.pack(
        _flags(capture), *ids,
        capture.outbound_port, capture.inbound_port, capture.tunnel_port, capture.dns_port,
        ipv4[0] if ipv4 else bytes(4), ipv6[0] if ipv6 else bytes(16),
        loopback.address, bits.to_bytes(4, "big"), capture.mark,
    )  # fmt: skip


def _flags(capture: SocketCapture) -> int:
    ipv4, ipv6 = _addresses(capture)
    flags = _INBOUND[capture.inbound] | _OUTBOUND[capture.outbound] | _DNS[capture.dns]
    flags |= OUT_NOT_NETWORKS if capture.excluded_networks else 0
    flags |= OUT_PORTS if capture.outbound_ports else 0
    flags |= OUT_NOT_PORTS if capture.excluded_ports else 0
    flags |= 0 if capture.groups is None else GROUPS
    flags |= NOT_GROUPS if capture.excluded_groups else 0
    flags |= MORE_OWN if ipv4[1:] or ipv6[1:] else 0
    flags |= LOOPBACK_CAPTURED if capture.loopback_captured else 0
    flags |= TPROXY if capture.tproxy else 0
    return flags | (IPV6 if capture.ipv6 else 0)


def _addresses(capture: SocketCapture) -> tuple[list[bytes], list[bytes]]:
    """The pod's own addresses, IPv4 and IPv6."""
    ipv4 = [each.address for each in capture.addresses if len(each.address) == 4]
    return ipv4, [each.address for each in capture.addresses if len(each.address) == 16]


def _owners(ids: tuple[int, ...]) -> tuple[int, ...]:
    if len(ids) > MAX_OWNERS:
        raise ValueError(f"at most {MAX_OWNERS} ids")
    return (*ids, *[_NOBODY] * (MAX_OWNERS - len(ids)))


def members(capture: SocketCapture) -> Iterator[Member]:
    """What the pod has in the trie, beside its first member."""
    yield from _numbers(IN_PORT, capture.inbound_ports)
    yield from _numbers(OUT_PORT, capture.outbound_ports)
    yield from _numbers(OUT_NOT_PORT, capture.excluded_ports)
    for group in (*(capture.groups or ()), *capture.excluded_groups):
        yield GROUP, 32, group.to_bytes(4, "big").ljust(16, b"\0")
    yield from _networks(OUT_NETWORK, capture.outbound_networks)
    yield from _networks(OUT_NOT_NETWORK, capture.excluded_networks)
    yield from _networks(DNS_SERVER, capture.dns_servers)
    yield from _networks(OWN, capture.addresses)


def _networks(kind: int, networks: tuple[Network, ...]) -> Iterator[Member]:
    for network in networks:
        if len(network.address) == 4:
            yield kind, network.prefix + 96, bytes(10) + b"\xff\xff" + network.address
        else:
            yield kind + _IPV6, network.prefix, network.address


def _numbers(kind: int, ranges: tuple[PortRange, ...]) -> Iterator[Member]:
    for each in ranges:
        for first, bits in prefixes(each.low, each.high):
            yield kind, bits, first.to_bytes(4, "big").ljust(16, b"\0")


def prefixes(low: int, high: int) -> Iterator[tuple[int, int]]:
    """A range of 32-bit numbers as the fewest prefixes: the first number of each, and how many bits count."""
    while low <= high:
        # As long as it begins at a multiple of its own length, and does not reach past the end.
        size = low & -low or 1 << 32
        while size > high - low + 1:
            size >>= 1
        yield low, 33 - size.bit_length()
        low += size


def first_key(cookie: int) -> bytes:
    """The key before all of a pod's members: the others are found by walking on from it."""
    return member_key(cookie, (FIRST, 128, bytes(16)))


def member_key(cookie: int, member: Member) -> bytes:
    """The bytes of struct member: the key of one of a pod's members."""
    kind, bits, data = member
    return pack("<IQI", 96 + bits, cookie, kind) + data
