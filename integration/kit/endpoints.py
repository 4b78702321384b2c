"""Sockets of other users in other namespaces, and one connection or datagram followed from end to end.

A socket belongs to the namespace and to the user of the process that made it, even if another uses it later: a
forked child makes it and hands it over. So one test holds both ends of every connection, and waits on all
listeners at once to see which of them is reached.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from integration.kit.capabilities import become
from integration.kit.namespace import Namespace
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from istio_init.model.rules import Family

# <linux/netfilter_ipv4.h> and <linux/netfilter_ipv6/ip6_tables.h>, <linux/in.h>, <linux/in6.h>
SO_ORIGINAL_DST = 80
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75

# How long a packet may take on a busy machine before it counts as lost; only a failing test waits for it.
PATIENCE = 20.0

Address = tuple[str, int]
FAMILY_NUMBERS = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


class User(NamedTuple):
    """Who makes a socket."""

    uid: int
    gid: int


ROOT = User(0, 0)


class Arrival(NamedTuple):
    """Where a connection or datagram ended, and what the one who took it sees.

    `at` is the listener's name or "refused"; `source` is the other end, `local` the listener's own side. `original`
    is what SO_ORIGINAL_DST says: None for datagrams, and at the peer, which tracks no connections. `answered` is
    whom the client had its answer from.
    """

    at: str
    source: Address | None = None
    local: Address | None = None
    original: Address | None = None
    answered: Address | None = None


def opened(namespace: Namespace, family: Family, kind: int, user: User = ROOT) -> socket.socket:
    """A new socket of this user in the namespace."""
    if user == ROOT:
        return namespace.inside(lambda: socket.socket(FAMILY_NUMBERS[family], kind))
    connection, _ = used(namespace, family, kind, user, lambda _: 0)
    return connection


def used(
    namespace: Namespace, family: Family, kind: int, user: User, work: Callable[[socket.socket], int]
) -> tuple[socket.socket, int]:
    """A new socket of this user in the namespace, after the user has done some work with it, which returns a number.

    Programs at a cgroup look at who calls connect(2), netfilter at who made the socket.
    """
    ours, childs = socket.socketpair()
    with ours, childs:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                namespace.enter()
                become(*user)
                with socket.socket(FAMILY_NUMBERS[family], kind) as sock:
                    socket.send_fds(childs, [work(sock).to_bytes(2, "big")], [sock.fileno()])
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"no socket for {user}: status {status}"
        number, descriptors, _, _ = socket.recv_fds(ours, 2, 1)
    return socket.socket(fileno=descriptors[0]), int.from_bytes(number, "big")


def set_transparent(endpoint: socket.socket) -> None:
    """Let the socket bind to, and accept for, addresses that are not the machine's own."""
    if endpoint.family == socket.AF_INET:
        endpoint.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    else:
        endpoint.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)


def listener(
    namespace: Namespace,
    family: Family,
    address: Address,
    user: User = ROOT,
    *,
    kind: int = socket.SOCK_STREAM,
    transparent: bool = False,
) -> socket.socket:
    """A socket that waits for connections (or, with `kind` SOCK_DGRAM, datagrams) at an address of the namespace."""
    connection = opened(namespace, family, kind, user)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:
        set_transparent(connection)
    connection.bind(address)
    if kind == socket.SOCK_STREAM:
        connection.listen()
    return connection


def original_destination(connection: socket.socket, family: Family | None = None) -> Address:
    """Where the connection was meant to go, from conntrack: struct sockaddr_in or sockaddr_in6, network order.

    `family` is that of the connection's addresses, where it is not the socket's.
    """
    if (FAMILY_NUMBERS[family] if family else connection.family) == socket.AF_INET:
        data = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack_from("!2xH4s", data)
        return socket.inet_ntop(socket.AF_INET, packed), port
    data = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    port, packed = struct.unpack_from("!2xH4x16s", data)
    return socket.inet_ntop(socket.AF_INET6, packed), port


def awaited(condition: Callable[[], bool], what: str) -> None:
    """Return once the condition holds; AssertionError where it does not in all our patience."""
    tries = int(PATIENCE / 0.005)
    for _ in range(tries):
        if condition():
            return
        select.select([], [], [], 0.005)
    raise AssertionError(f"waited in vain for {what}")


def connect(client: socket.socket, to: Address, listeners: Mapping[str, socket.socket]) -> Arrival:
    """Connect the client and see which listener gets it; a byte must pass both ways. The client is closed."""
    client.setblocking(False)
    return arrival(client, client.connect_ex(to), to, listeners)


def arrival(client: socket.socket, started: int, to: Address, listeners: Mapping[str, socket.socket]) -> Arrival:
    """See which listener gets a connection, of which `started` is what connect(2) came to; see connect()."""
    with client:
        client.setblocking(False)
        if started == errno.ECONNREFUSED:
            return Arrival("refused")
        assert started in {0, errno.EINPROGRESS}, f"connect to {to}: {os.strerror(started)}"
        name = _reached(client, to, listeners)
        if name == "refused":
            return Arrival("refused")
        accepted, source = listeners[name].accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            client.settimeout(PATIENCE)
            _exchange(client, accepted)
            observed = _seen_by_conntrack(accepted)
            return Arrival(name, source[:2], accepted.getsockname()[:2], observed, client.getpeername()[:2])


def _seen_by_conntrack(accepted: socket.socket) -> Address | None:
    """The original destination; None where nobody tracks connections, as in a namespace without rules."""
    try:
        return original_destination(accepted)
    except FileNotFoundError:
        return None


def _exchange(client: socket.socket, server: socket.socket) -> None:
    client.sendall(b"?")
    assert server.recv(1) == b"?"
    server.sendall(b"!")
    assert client.recv(1) == b"!"


def _reached(client: socket.socket, to: Address, listeners: Mapping[str, socket.socket]) -> str:
    """The name of the listener with a connection to accept, or "refused"."""
    waiting = select.poll()
    names = {each.fileno(): name for name, each in listeners.items()}
    for number in names:
        waiting.register(number, select.POLLIN)
    waiting.register(client, 0)  # errors are always reported
    ready = waiting.poll(PATIENCE * 1000)
    assert ready, f"the connection to {to} is lost: nobody took it and nobody refused it"
    for number, _ in ready:
        if number in names:
            return names[number]
    problem = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert problem == errno.ECONNREFUSED, f"connect to {to}: {os.strerror(problem)}"
    return "refused"


def ask(client: socket.socket, to: Address, listeners: Mapping[str, socket.socket]) -> Arrival:
    """Send a datagram, see which receiver gets it, answer from there and see where the answer comes from.

    The client is closed.
    """
    client.sendto(b"?", to)
    return answer(client, to, listeners)


def answer(client: socket.socket, to: Address, listeners: Mapping[str, socket.socket]) -> Arrival:
    """See where a datagram of one byte ends that the client has sent; see ask()."""
    with client:
        client.settimeout(PATIENCE)
        readable, _, _ = select.select(list(listeners.values()), [], [], PATIENCE)
        assert readable, f"the datagram to {to} is lost"
        name = next(name for name, each in listeners.items() if each is readable[0])
        _, source = readable[0].recvfrom(1)
        readable[0].sendto(b"!", source)
        data, answered = client.recvfrom(1)
        assert data == b"!"
        return Arrival(name, source[:2], readable[0].getsockname()[:2], answered=answered[:2])


def any_address(family: Family) -> str:
    """The address that stands for all of the machine's."""
    return "0.0.0.0" if family == IPV4 else "::"
