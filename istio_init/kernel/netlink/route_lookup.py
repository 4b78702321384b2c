"""The kernel's answer to "where would this packet go": RTM_GETROUTE, with everything that policy rules look at.

See inet_rtm_getroute (net/ipv4/route.c) and inet6_rtm_getroute (net/ipv6/route.c). The layouts are those of
<linux/rtnetlink.h> and <linux/if_link.h>. Nothing is sent: the kernel only looks the route up.
"""

from __future__ import annotations

import _struct as struct
import errno
import os

from istio_init.kernel.netlink.channel import NLMSG_ERROR, NUMBER, RtnetlinkChannel, attribute, attributes
from istio_init.model.packet import NextHop
from istio_init.model.rules import LOOPBACK_INTERFACE, TCP, UDP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.packet import Packet

RTM_GETLINK, RTM_GETROUTE = 18, 26
RTN_LOCAL = 2
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_PREFSRC, RTA_MARK = 1, 2, 3, 4, 7, 16
RTA_UID, RTA_IP_PROTO, RTA_SPORT, RTA_DPORT = 25, 27, 28, 29
IFLA_IFNAME = 3

# struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
ROUTE = struct.Struct("=8BI")
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
WORD, PORT = struct.Struct("=I"), struct.Struct("!H")
NUMBERS = {4: 2, 16: 10}  # AF_INET, AF_INET6 by the length of an address


class _Queries(RtnetlinkChannel):
    """A channel for requests with one answer each."""

    def query(self, kind: int, body: bytes) -> bytes:
        """The answer without its header; OSError where the kernel refuses."""
        self._send(kind, 0, body)
        answer, _, data = next(self._messages())
        if answer == NLMSG_ERROR:
            number = -NUMBER.unpack_from(data)[0]
            raise OSError(number, os.strerror(number))
        return data


class RouteLookup:
    """Routes of the network namespace in which it was made, for as long as it lives.

    KernelError where the namespace's interfaces can't be read.
    """

    def __init__(self) -> None:
        self._channel = _Queries().__enter__()
        self._names: dict[int, str] = {}
        for data in self._channel.dump("interfaces", RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0)):
            name = attributes(data[LINK.size :]).get(IFLA_IFNAME, b"").rstrip(b"\0")
            self._names[LINK.unpack_from(data)[2]] = os.fsdecode(name)
        self._indexes = {name: index for index, name in self._names.items()}

    def __del__(self) -> None:
        self._channel.__exit__()

    def sent(self, packet: Packet, *, local_source: bool) -> NextHop | None:
        """Where a packet goes that a process here sends; `local_source` says that its source is an address here.

        None where no route covers its destination, as before a network is set up.
        """
        extra = [] if packet.uid is None else [attribute(RTA_UID, WORD.pack(packet.uid))]
        return self._lookup(packet, extra, with_source=local_source)

    def arriving(self, packet: Packet) -> NextHop | None:
        """Where a packet goes that comes in by an interface; None where there is no such interface, or no route."""
        index = self._indexes.get(packet.in_interface)
        if index is None:
            return None
        return self._lookup(packet, [attribute(RTA_IIF, WORD.pack(index))], with_source=True)

    def _lookup(self, packet: Packet, extra: list[bytes], *, with_source: bool) -> NextHop | None:
        bits = len(packet.destination) * 8
        head = ROUTE.pack(NUMBERS[len(packet.destination)], bits, bits if with_source else 0, 0, 0, 0, 0, 0, 0)
        parts = [attribute(RTA_DST, packet.destination), attribute(RTA_MARK, WORD.pack(packet.mark)), *extra]
        parts += [attribute(RTA_SRC, packet.source)] if with_source else []
        if packet.protocol in {TCP, UDP}:
            parts.append(attribute(RTA_IP_PROTO, bytes([packet.protocol])))
            ports = ((RTA_SPORT, packet.source_port), (RTA_DPORT, packet.destination_port))
            parts += [attribute(kind, PORT.pack(port)) for kind, port in ports if port]
        try:
            data = self._channel.query(RTM_GETROUTE, head + b"".join(parts))
        except OSError as error:
            if error.errno == errno.ENETUNREACH:
                return None
            return NextHop("", refused=f"the kernel has no route for it: {error.strerror}")
        values = attributes(data[ROUTE.size :])
        kind = ROUTE.unpack_from(data)[7]
        (index,) = WORD.unpack(values.get(RTA_OIF, bytes(4)))
        if kind == RTN_LOCAL:
            return NextHop(LOOPBACK_INTERFACE, local=True, source=values.get(RTA_PREFSRC))
        return NextHop(self._names.get(index, ""), source=values.get(RTA_PREFSRC))
