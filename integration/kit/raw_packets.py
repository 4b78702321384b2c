"""Packets made byte by byte, and sockets that send them: as any user of the pod's, or from the wire.

All bear the DSCP value OURS, and those of the pod's sockets the PRIORITY, by which a test tells them from what the
kernel says by itself (a reset has the DSCP value of what it answers).
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import TYPE_CHECKING

from istio_init.model.rules import TCP, UDP

if TYPE_CHECKING:
    from istio_init.model.packet import Packet

OURS = 1
PRIORITY = 6
SYN, SYN_ACK, ACK, SYN_FIN = 0x02, 0x12, 0x10, 0x03
ETHERTYPES = {"ipv4": 0x0800, "ipv6": 0x86DD}
IPV6_HDRINCL = 36  # <linux/in6.h>

_libc = ctypes.CDLL(None, use_errno=True)


def crafted(packet: Packet, flags: int = SYN) -> bytes:
    """The packet from its IP header on; `flags` are TCP's."""
    body = _transport(packet, flags)
    if packet.family == "ipv4":
        head = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            OURS << 2,
            20 + len(body),
            0,
            0,
            64,
            packet.protocol,
            0,
            packet.source,
            packet.destination,
        )
        head = head[:10] + struct.pack("!H", _sum(head)) + head[12:]
    else:
        first = 6 << 28 | OURS << 22
        head = struct.pack("!IHBB16s16s", first, len(body), packet.protocol, 64, packet.source, packet.destination)
    return head + body


def _transport(packet: Packet, flags: int) -> bytes:
    """The transport header, with its checksum; four bytes of nothing for a protocol without ports."""
    ports = packet.source_port, packet.destination_port
    if packet.protocol == TCP:
        body, at = struct.pack("!HHIIBBHHH", *ports, 1, 1 if flags & ACK else 0, 0x50, flags, 65535, 0, 0), 16
    elif packet.protocol == UDP:
        body, at = struct.pack("!HHHH4s", *ports, 12, 0, b"ping"), 6
    else:
        return bytes(4)
    length = struct.pack("!I", len(body)) + struct.pack("!I", packet.protocol)
    checksum = _sum(packet.source + packet.destination + length + body) or 0xFFFF
    return body[:at] + struct.pack("!H", checksum) + body[at + 2 :]


def _sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Sender:
    """Sends packets in the namespace of the thread that made it, as the user and group that a packet names."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[str, int | None, int | None, int], socket.socket] = {}
        self._wires: dict[tuple[str, str], socket.socket] = {}

    def send(self, packet: Packet, flags: int = SYN) -> None:
        """Send by the routes of the namespace, through its OUTPUT hook; the socket must have been opened."""
        data = crafted(packet, flags)
        result = self._sockets[packet.family, packet.uid, packet.gid, packet.mark]
        if packet.family == "ipv4":
            result.sendto(data, (socket.inet_ntoa(packet.destination), 0))
        else:
            result.sendto(data, (socket.inet_ntop(socket.AF_INET6, packet.destination), 0))

    def open(self, packet: Packet) -> None:
        """Have a socket for such packets: raw, owned by the packet's uid and gid, with its mark.

        xt_owner asks for the file system ids that the opener of the socket had.
        """
        key = (packet.family, packet.uid, packet.gid, packet.mark)
        if key in self._sockets:
            return
        assert packet.uid is not None
        assert packet.gid is not None
        _libc.setfsgid(packet.gid)
        _libc.setfsuid(packet.uid)
        try:
            domain = socket.AF_INET if packet.family == "ipv4" else socket.AF_INET6
            sock = socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW)
        finally:
            _libc.setfsuid(0)
            _libc.setfsgid(0)
        if packet.family == "ipv6":
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, packet.mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
        self._sockets[key] = sock

    def open_wire(self, interface: str, family: str) -> None:
        """Have a socket that puts frames on an interface of this namespace."""
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((interface, ETHERTYPES[family]))
        self._wires[interface, family] = sock

    def put(self, packet: Packet, interface: str, to: str, sender: str, flags: int = SYN) -> None:
        """Put a packet on the wire, between two MAC addresses."""
        macs = bytes.fromhex(to.replace(":", "")) + bytes.fromhex(sender.replace(":", ""))
        frame = macs + struct.pack("!H", ETHERTYPES[packet.family]) + crafted(packet, flags)
        self._wires[interface, packet.family].send(frame)

    def close(self) -> None:
        """Close all sockets."""
        for each in (*self._sockets.values(), *self._wires.values()):
            each.close()
