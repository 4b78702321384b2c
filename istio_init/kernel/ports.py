"""-m tcp and -m udp: the one kernel match that holds the ports of both sides (struct xt_tcp, struct xt_udp).

From <linux/netfilter/xt_tcpudp.h>: ports in native byte order, low and high, all of them where a side isn't asked for.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.kernel.extensions import HEAD, Inexpressible
from istio_init.netfilter import TCP, UDP, DestinationPorts, PortRange, SourcePorts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.netfilter import Match

_TCP_DATA = Struct("=4H3xB4x")  # source low and high, destination low and high; option, flags and mask; inverted
_UDP_DATA = Struct("=4HB7x")  # the same without TCP's own
_TCP_HEAD = HEAD.pack(HEAD.size + _TCP_DATA.size, b"tcp", 0)
_UDP_HEAD = HEAD.pack(HEAD.size + _UDP_DATA.size, b"udp", 0)

PORTS_AT = HEAD.size + 4  # where the destination's ports are in either

_LOWEST, _HIGHEST = 0, 65535
_SOURCE_INVERTED, _DESTINATION_INVERTED = 1, 2


def pack_ports(protocol: int, source: SourcePorts | None, destination: DestinationPorts | None) -> bytes:
    """One match of -m tcp or -m udp with both sides' ports; None asks nothing of that side."""
    ports = [_LOWEST, _HIGHEST, _LOWEST, _HIGHEST, 0]
    if source:
        ports[0], ports[1] = source.ports.low, source.ports.high
        if source.negated:
            ports[4] |= _SOURCE_INVERTED
    if destination:
        ports[2], ports[3] = destination.ports.low, destination.ports.high
        if destination.negated:
            ports[4] |= _DESTINATION_INVERTED
    if protocol == TCP:
        return _TCP_HEAD + _TCP_DATA.pack(*ports)
    if protocol == UDP:
        return _UDP_HEAD + _UDP_DATA.pack(*ports)
    raise Inexpressible("ports need -p tcp or -p udp")


def unpack_ports(protocol: int, element: bytes) -> tuple[Match, ...]:
    """What a match of -m tcp or -m udp asks of the ports; nothing where it is another, or asks for something else."""
    size = HEAD.size
    if protocol == TCP:
        head, layout = _TCP_HEAD, _TCP_DATA
    elif protocol == UDP:
        head, layout = _UDP_HEAD, _UDP_DATA
    else:
        return ()
    if element[2:6] != head[2:6] or element[size - 1] != 0 or len(element) != size + layout.size:
        return ()
    source_low, source_high, low, high, inverted = layout.unpack_from(element, size)
    source = destination = None
    if inverted & _SOURCE_INVERTED or (source_low, source_high) != (_LOWEST, _HIGHEST):
        source = SourcePorts(PortRange(source_low, source_high), bool(inverted & _SOURCE_INVERTED))
    if inverted & _DESTINATION_INVERTED or (low, high) != (_LOWEST, _HIGHEST):
        destination = DestinationPorts(PortRange(low, high), bool(inverted & _DESTINATION_INVERTED))
    if pack_ports(protocol, source, destination)[size:] != element[size:]:
        return ()
    return tuple(side for side in (source, destination) if side is not None)
