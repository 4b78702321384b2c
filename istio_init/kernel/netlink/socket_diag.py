"""The listening TCP sockets of the calling thread's network namespace, by sock_diag(7).

The layouts are those of <linux/inet_diag.h>: native byte order, but for ports and addresses.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import TYPE_CHECKING

from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import RtnetlinkChannel, attributes
from istio_init.record import Record

if TYPE_CHECKING:
    from typing import Self

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
LISTEN = 10  # <net/tcp_states.h>
# struct inet_diag_req_v2 without its socket id: family, protocol, extensions, states.
REQUEST, SOCKET_ID = Struct("=BBBxI"), bytes(48)
# struct inet_diag_msg: port, address, backlog (waiting, most), inode.
PORT, ADDRESS, QUEUES, INODE = Struct("!H"), slice(8, 24), Struct("=II"), Struct("=I")
PORT_AT, QUEUES_AT, INODE_AT, LENGTH = 4, 56, 68, 72
INET_DIAG_SKV6ONLY, INET_DIAG_SOCKOPT = 11, 22
# The bit of struct inet_diag_sockopt (Linux 5.7).
TRANSPARENT = 1 << 5


class ListeningSocket(Record):
    """A listening socket: its address (IPv4's or IPv6's), port and inode, and what it may do.

    `v6only`: it takes no IPv4. `transparent`: it takes connections to any address (IP_TRANSPARENT), None where the
    kernel does not say. `waiting` are connections that no accept(2) has taken, of `most` that may wait.
    """

    address: bytes
    port: int
    inode: int
    v6only: bool = False
    transparent: bool | None = None
    waiting: int = 0
    most: int = 0


class _Channel(RtnetlinkChannel):
    """A sock_diag socket; KernelError where it can't be opened."""

    def __enter__(self) -> Self:
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
            self._socket.connect((0, 0))
        except OSError as error:
            raise KernelError(f"sock_diag: {error.strerror}", error.errno or 0) from error
        return self


def listeners() -> tuple[ListeningSocket, ...]:
    """All listening TCP sockets. KernelError where the kernel has no sock_diag, or refuses."""
    sockets = []
    with _Channel() as channel:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << LISTEN) + SOCKET_ID
            sockets += [
                _listener(family, data) for data in channel.dump("listening sockets", SOCK_DIAG_BY_FAMILY, body)
            ]
    return tuple(sockets)


def _listener(family: int, data: bytes) -> ListeningSocket:
    attrs = attributes(data[LENGTH:])
    address = data[ADDRESS][: 4 if family == socket.AF_INET else 16]
    waiting, most = QUEUES.unpack_from(data, QUEUES_AT)
    settings = attrs.get(INET_DIAG_SOCKOPT)
    return ListeningSocket(
        address, PORT.unpack_from(data, PORT_AT)[0], INODE.unpack_from(data, INODE_AT)[0],
        any(attrs.get(INET_DIAG_SKV6ONLY, b"")), None if settings is None else bool(settings[0] & TRANSPARENT),
        waiting, most,
    )  # fmt: skip
