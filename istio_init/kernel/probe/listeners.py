"""Listens at the proxy's ports, to see which connections arrive there."""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the functions in C are all that is needed
import _struct as struct  # struct.py only hands it on
import errno
import select
import time

from istio_init.errors_rare import ValidationFailed
from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.model.rules import IPV4
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from istio_init.model.rules import Family

NUMBERS = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
LOOPBACK = {"ipv4": b"\x7f\x00\x00\x01", "ipv6": bytes(15) + b"\x01"}

SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>, and IP6T_SO_ORIGINAL_DST of <linux/netfilter_ipv6/ip6_tables.h>
SOCKADDR_IN = struct.Struct("!2xH4s8x")  # family (native, of no interest), port, address
SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")  # family, port, flow, address, scope


class Arrival(Record):
    """An incoming connection: its port, its original destination (None: unknown), and its socket."""

    port: int
    original: tuple[bytes, int] | None
    connection: socket.socket


class Listeners:
    """Listening sockets on 127.0.0.1 and ::1, for the families in use, within a `with`.

    ValidationFailed where an address can't be listened on.
    """

    def __init__(self, families: tuple[Family, ...], ports: tuple[int, ...]) -> None:
        self._places = [(family, port) for family in families for port in dict.fromkeys(ports)]
        self._sockets: dict[int, tuple[socket.socket, Family, int]] = {}

    def __enter__(self) -> Self:
        try:
            for family, port in self._places:
                listener = _listener(family, port)
                self._sockets[listener.fileno()] = (listener, family, port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for listener, _family, _port in self._sockets.values():
            listener.close()
        self._sockets.clear()

    def arrival(self, token: bytes, until: float) -> Arrival | None:
        """The connection that sends `token`, or None if there is none by the monotonic time `until`.

        Others' connections are dropped: there is no proxy yet to serve them.
        """
        poll = select.poll()
        for descriptor in self._sockets:
            poll.register(descriptor, select.POLLIN)
        accepted: dict[int, Arrival] = {}
        try:
            while ready := poll.poll(milliseconds(until)):
                for descriptor, _events in ready:
                    if descriptor not in accepted:
                        arrival = _accepted(*self._sockets[descriptor])
                        accepted[arrival.connection.fileno()] = arrival
                        poll.register(arrival.connection, select.POLLIN)
                    elif _received(accepted[descriptor].connection, len(token)) == token:
                        return accepted.pop(descriptor)
                    else:
                        poll.unregister(descriptor)
                        hang_up(accepted.pop(descriptor).connection)
                if time.monotonic() >= until:
                    break
        finally:
            for arrival in accepted.values():
                hang_up(arrival.connection)
        return None


def _listener(family: Family, port: int) -> socket.socket:
    where = endpoint_text(LOOPBACK[family], port)
    try:
        listener = socket.socket(NUMBERS[family], socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Ports with connections in TIME_WAIT can be listened on.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address_text(LOOPBACK[family]), port))
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        text = f"validation can't listen on {where}: {error.strerror} ({name}); {_remedy(family, error.errno or 0)}"
        raise ValidationFailed(text) from error
    return listener


def _remedy(family: Family, number: int) -> str:
    """The remedy."""
    match number:
        case errno.EADDRINUSE:
            return "the proxy already runs, or something else has its port: validate before it starts, or stop it"
        case errno.EACCES:
            return "a port below 1024 needs the capability NET_BIND_SERVICE"
        case errno.EADDRNOTAVAIL if family == IPV4:
            return "lo is down; bring it up: ip link set lo up"
        case errno.EADDRNOTAVAIL:
            return "lo is down (ip link set lo up), or IPv6 is off (net.ipv6.conf.lo.disable_ipv6=0), or leave IPv6 out"
        case errno.EAFNOSUPPORT:
            return "the kernel has no IPv6; leave IPv6 out"
        case _:
            return "validation needs the proxy's ports for itself"


def _accepted(listener: socket.socket, family: Family, port: int) -> Arrival:
    # accept() is socket.py's own; typeshed does not know what the type in C has instead.
    descriptor, _peer = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    return Arrival(port, _original(connection, family), connection)


def _original(connection: socket.socket, family: Family) -> tuple[bytes, int] | None:
    """The original destination of a redirected connection, from conntrack."""
    layout, level = (SOCKADDR_IN, socket.IPPROTO_IP) if family == IPV4 else (SOCKADDR_IN6, socket.IPPROTO_IPV6)
    try:
        port, address = layout.unpack(connection.getsockopt(level, SO_ORIGINAL_DST, layout.size))
    except OSError:
        return None  # conntrack does not know this connection, or there is none
    return address, port


def _received(connection: socket.socket, length: int) -> bytes:
    """The first bytes that the peer sent, at most this many; empty if it sent none or has closed the connection."""
    try:
        return connection.recv(length)
    except OSError:
        return b""


def hang_up(connection: socket.socket) -> None:
    """Close with a reset, so that no connection in TIME_WAIT is left on the proxy's ports."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def readiness(connection: socket.socket, event: int, until: float) -> bool:
    """Whether a poll(2) event, or an error, comes before the monotonic time `until`."""
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(milliseconds(until)))


def milliseconds(until: float) -> float:
    """The timeout of poll(2) for the monotonic time `until`; 0 if it is past."""
    return max(0.0, until - time.monotonic()) * 1000
