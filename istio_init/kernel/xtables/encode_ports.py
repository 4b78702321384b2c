"""-m tcp and -m udp: the one kernel match that holds the ports of both sides (struct xt_tcp, struct xt_udp).

From <linux/netfilter/xt_tcpudp.h>: ports in native byte order, low and high, all of them where a side isn't asked for.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.kernel.xtables.encode_match import HEAD
from istio_init.model.rules import TCP, UDP, DestinationPorts, SourcePorts

TYPE_CHECKING = False

TCP_DATA = Struct("=4H3xB4x")  # source low and high, destination low and high; option, flags and mask; inverted
UDP_DATA = Struct("=4HB7x")  # the same without TCP's own
TCP_HEAD = HEAD.pack(HEAD.size + TCP_DATA.size, b"tcp", 0)
UDP_HEAD = HEAD.pack(HEAD.size + UDP_DATA.size, b"udp", 0)

PORTS_AT = HEAD.size + 4  # where the destination's ports are in either

LOWEST, HIGHEST = 0, 65535
SOURCE_INVERTED, DESTINATION_INVERTED = 1, 2


def pack_ports(protocol: int, source: SourcePorts | None, destination: DestinationPorts | None) -> bytes:
    """Encode one match of -m tcp or -m udp with the ports of both sides; None for any port."""
    ports = [LOWEST, HIGHEST, LOWEST, HIGHEST, 0]
    if source:
        ports[0], ports[1] = source.ports.low, source.ports.high
        if source.negated:
            ports[4] |= SOURCE_INVERTED
    if destination:
        ports[2], ports[3] = destination.ports.low, destination.ports.high
        if destination.negated:
            ports[4] |= DESTINATION_INVERTED
    if protocol == TCP:
        return TCP_HEAD + TCP_DATA.pack(*ports)
    if protocol == UDP:
        return UDP_HEAD + UDP_DATA.pack(*ports)
    raise ValueError("ports need -p tcp or -p udp")
