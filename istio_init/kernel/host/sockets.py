"""Options of sockets that asyncio has no calls for: who the peer is, and noticing a peer that is gone."""

from __future__ import annotations

import socket
import struct

# struct ucred, <linux/socket.h>: pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")
# Seconds until a silent connection is probed, between two probes, and how many of them are lost before it is closed.
KEEP_IDLE, KEEP_INTERVAL, KEEP_COUNT = 15, 5, 3


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process at the other end of a unix socket, when it connected (SO_PEERCRED, unix(7))."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel close a TCP connection whose peer has vanished, within half a minute (tcp(7)).

    A watch is silent for minutes, so nothing else would notice.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_IDLE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_COUNT)
    # What was sent and never acknowledged, in milliseconds.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (KEEP_IDLE + KEEP_INTERVAL * KEEP_COUNT) * 1000)
