"""What the maps say of one pod, as a value: the inverse of pod_value and members in layout.py."""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING

from istio_init.kernel.ebpf import layout
from istio_init.model.rules import Network, PortRange
from istio_init.model.socket_capture import SocketCapture

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.model.socket_capture import Scope

_FAMILY_BIT = 16
_MAPPED = bytes(10) + b"\xff\xff"
_UNUSED = 0xFFFFFFFF


def capture(value: bytes, keys: Iterable[bytes]) -> SocketCapture:
    """The capture in a pod's entry and its members' keys. Ids are as the initial user namespace counts them.

    Neighbouring ranges of ports are one, and the first of several own addresses may be another than was written.
    """
    flags, *fields = layout.POD.unpack(value)
    ids, (outbound, inbound, tunnel, dns) = fields[:8], fields[8:12]
    _, _, loopback, mask, mark = fields[12:]
    members = _by_kind(keys)
    groups = tuple(sorted(number for number, _ in _numbers(members, layout.GROUP)))
    return SocketCapture(
        addresses=_networks(members, layout.OWN),
        uids=tuple(each for each in ids[:4] if each != _UNUSED),
        gids=tuple(each for each in ids[4:] if each != _UNUSED),
        outbound_port=outbound, inbound_port=inbound, tunnel_port=tunnel, dns_port=dns,
        inbound=_scope(flags, layout.IN_ALL, layout.IN_LIST),
        inbound_ports=_ports(members, layout.IN_PORT),
        outbound=_scope(flags, layout.OUT_ALL, layout.OUT_NETWORKS),
        outbound_networks=_networks(members, layout.OUT_NETWORK),
        excluded_networks=_networks(members, layout.OUT_NOT_NETWORK),
        outbound_ports=_ports(members, layout.OUT_PORT),
        excluded_ports=_ports(members, layout.OUT_NOT_PORT),
        groups=groups if flags & layout.GROUPS else None,
        excluded_groups=groups if flags & layout.NOT_GROUPS else (),
        dns=_scope(flags, layout.DNS_ALL, layout.DNS_SERVERS),
        dns_servers=_networks(members, layout.DNS_SERVER),
        loopback=Network(loopback, int.from_bytes(mask, "big").bit_count()),
        loopback_captured=bool(flags & layout.LOOPBACK_CAPTURED),
        ipv6=bool(flags & layout.IPV6), tproxy=bool(flags & layout.TPROXY), mark=mark,
    )  # fmt: skip


def _scope(flags: int, everything: int, listed: int) -> Scope:
    return "all" if flags & everything else "list" if flags & listed else "none"


def _by_kind(keys: Iterable[bytes]) -> dict[int, list[tuple[int, bytes]]]:
    """The members by their kind: the length of the prefix in bits, and the 16 bytes."""
    members: dict[int, list[tuple[int, bytes]]] = {}
    for key in keys:
        bits, _, kind = unpack("<IQI", key[:16])
        members.setdefault(kind, []).append((bits - 96, key[16:]))
    return members


def _networks(members: dict[int, list[tuple[int, bytes]]], kind: int) -> tuple[Network, ...]:
    ipv4 = [Network(data[12:], bits - 96) for bits, data in members.get(kind, ()) if data.startswith(_MAPPED)]
    ipv6 = [Network(data, bits) for bits, data in members.get(kind + _FAMILY_BIT, ())]
    return (*sorted(ipv4, key=_place), *sorted(ipv6, key=_place))


def _place(network: Network) -> tuple[bytes, int]:
    return network.address, network.prefix


def _numbers(members: dict[int, list[tuple[int, bytes]]], kind: int) -> list[tuple[int, int]]:
    """The first and the last number of each prefix."""
    firsts = [(int.from_bytes(data[:4], "big"), 1 << (32 - bits)) for bits, data in members.get(kind, ())]
    return sorted((first, first + size - 1) for first, size in firsts)


def _ports(members: dict[int, list[tuple[int, bytes]]], kind: int) -> tuple[PortRange, ...]:
    ranges: list[PortRange] = []
    for low, high in _numbers(members, kind):
        if ranges and low <= ranges[-1].high + 1:
            ranges[-1] = PortRange(ranges[-1].low, max(high, ranges[-1].high))
        else:
            ranges.append(PortRange(low, high))
    return tuple(ranges)
