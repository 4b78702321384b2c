"""A pod as a test sees it: its namespace with the sidecar's and the app's sockets, and a peer on two wires.

    pod  veth0 10.77.0.2, fd77::2  ──────  10.77.0.1, fd77::1  veth0  peer   (default route of the pod)
         veth1 10.78.0.2, fd78::2  ──────  10.78.0.1, fd78::1  veth1
                                           10.99.0.1, fd99::1, 203.0.113.9, 2001:db8::9  on lo

The interfaces are called veth for a reason: a rule for lo whose interface mask has only the lowest bit of
each byte, as python-iptables 1.2.0 writes it for IPv6, takes veth0 for lo.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from integration.kit.backends import BACKENDS, tables_of
from integration.kit.endpoints import ROOT, Address, Arrival, User, any_address, ask, connect, listener, opened
from integration.kit.endpoints import set_transparent as make_transparent
from integration.kit.namespace import Namespace
from integration.kit.settling import carried, delivered
from istio_init.log import Log
from istio_init.model.rules import IPV4, IPV6
from istio_init.planning.plan import build
from istio_init.runner import access, backends, transaction
from tests.kit.options import options

if TYPE_CHECKING:
    from istio_init.model.rules import Family, TableName
    from istio_init.options.table import Options
    from istio_init.planning.changes import Changes

PROXY = User(1337, 1337)
APP = User(1000, 1000)


class Addresses(NamedTuple):
    """The addresses of one family: the pod's and the peer's on both wires, and what lies behind the peer."""

    pod: str
    peer: str
    second_pod: str
    second_peer: str
    inner: str
    outer: str
    loopback: str
    passthrough: str


ADDRESSES: dict[Family, Addresses] = {
    IPV4: Addresses(
        "10.77.0.2", "10.77.0.1", "10.78.0.2", "10.78.0.1", "10.99.0.1", "203.0.113.9", "127.0.0.1", "127.0.0.6"
    ),
    IPV6: Addresses("fd77::2", "fd77::1", "fd78::2", "fd78::1", "fd99::1", "2001:db8::9", "::1", "::6"),
}
HOST_BITS = {IPV4: 32, IPV6: 128}
WIRE_BITS = {IPV4: 24, IPV6: 64}
EVERYWHERE = {IPV4: "0.0.0.0/0", IPV6: "::/0"}
# An IPv6 address can be bound to at once only without a search for duplicates, which even lo ends a moment later.
NODAD = {IPV4: "", IPV6: " nodad"}
POD_MAC, PEER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
UP = ("link set veth0 up", "link set veth1 up")
# The parameters of every kind of pod, for tests that hold whichever backend writes the rules.
PODS = [(family, backend) for backend in BACKENDS for family in (IPV4, IPV6)]


class Pod:
    """Pod and peer, wired, from `with` to its end; all sockets are of one address family.

    `listeners` and `receivers` (of datagrams) are by name; each `dial` and `query` tells which one it reached.
    """

    def __init__(self, family: Family, backend: str = "legacy") -> None:
        self.family, self.backend = family, backend
        self.addresses = ADDRESSES[family]
        self.namespace, self.peer = Namespace(), Namespace()
        self._tables = tables_of(self.namespace, family, backend)
        self.listeners: dict[str, socket.socket] = {}
        self.receivers: dict[str, socket.socket] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.namespace)
            stack.enter_context(self.peer)
            stack.callback(self._close)
            self._wire()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def _close(self) -> None:
        for each in (*self.listeners.values(), *self.receivers.values()):
            each.close()

    def _wire(self) -> None:
        """Lay both wires, give out the addresses, and make the peer the pod's way to everywhere."""
        pods, peers = self.namespace.name, self.peer.name
        _batch(
            f"link add veth{wire} address {POD_MAC} netns {pods} type veth "
            f"peer name veth{wire} address {PEER_MAC} netns {peers}"
            for wire in (0, 1)
        )
        mine, theirs = [*UP], [*UP]
        for family, addresses in ADDRESSES.items():
            there = ((addresses.pod, addresses.peer), (addresses.second_pod, addresses.second_peer))
            for wire, (near, far) in enumerate(there):
                mine += _wire_end(family, wire, near, far, PEER_MAC)
                theirs += _wire_end(family, wire, far, near, POD_MAC)
            both = (addresses.inner, addresses.outer)
            theirs += [f"addr add {each}/{HOST_BITS[family]} dev lo{NODAD[family]}" for each in both]
            mine.append(f"route add {EVERYWHERE[family]} via {addresses.peer}")
        _batch(mine, self.namespace)
        _batch(theirs, self.peer)
        own = ADDRESSES[IPV6]
        self.namespace.inside(lambda: carried((b"veth0", b"veth1")))
        self.namespace.inside(lambda: delivered((own.pod, own.second_pod)))
        self.peer.inside(lambda: delivered((own.peer, own.second_peer, own.inner, own.outer)))

    def apply(self, arguments: str) -> Changes:
        """What istio-iptables does with these arguments in the pod, IPv6 included unless they say otherwise."""
        chosen = options_of(f"--enable-ipv6 {shlex.join(BACKENDS[self.backend])} {arguments}")
        return self.namespace.inside(lambda: applied(chosen))

    def delete(self, table: TableName, rule: str) -> None:
        """Take one rule (`CHAIN -s ...`, as iptables-save prints it) out of the family's table; it must be there."""
        self._tables.delete(table, rule)

    def insert(self, table: TableName, rule: str) -> None:
        """Put a rule before all others of its chain in the family's table."""
        self._tables.insert(table, rule)

    def flush(self, table: TableName) -> None:
        """Take all rules out of the family's table."""
        self._tables.flush(table)

    def counted(self, table: TableName, chain: str) -> list[int]:
        """How many packets each rule of a chain has matched."""
        return self._tables.counted(table, chain)

    def listen(self, name: str, port: int, user: User = ROOT, *, transparent: bool = False) -> None:
        """A listener of the pod's on all its addresses."""
        address = (any_address(self.family), port)
        self.listeners[name] = listener(self.namespace, self.family, address, user, transparent=transparent)

    def listen_at_peer(self, name: str, port: int) -> None:
        """A listener on all of the peer's addresses."""
        self.listeners[name] = listener(self.peer, self.family, (any_address(self.family), port))

    def listen_everywhere(self) -> None:
        """Listen as the sidecar, at the app's ports and as its resolver; at the peer, at 53, 80, 443 and 8080."""
        for name, port in (
            ("outbound", 15001),
            ("inbound", 15006),
            ("tunnel", 15008),
            ("app", 8080),
            ("app's other port", 8081),
            ("app's third port", 9090),
            ("app's resolver", 53),
        ):
            self.listen(name, port)
        for port in (53, 80, 443, 8080):
            self.listen_at_peer(f"peer:{port}", port)

    def receive(self, name: str, address: Address, user: User = ROOT, *, at: Namespace | None = None) -> None:
        """A receiver of datagrams in the pod, or in another namespace."""
        self.receivers[name] = listener(at or self.namespace, self.family, address, user, kind=socket.SOCK_DGRAM)

    def dial(
        self,
        user: User,
        to: Address,
        source: Address | None = None,
        *,
        mark: int = 0,
        transparent: bool = False,
        at: Namespace | None = None,
    ) -> Arrival:
        """Connect as this user from the pod (or from another namespace)."""
        return connect(self.client(user, source, mark=mark, transparent=transparent, at=at), to, self.listeners)

    def dial_in(self, to: Address, source: Address | None = None) -> Arrival:
        """Connect from the peer."""
        return self.dial(ROOT, to, source, at=self.peer)

    def query(self, user: User, to: Address, port: int = 0) -> Arrival:
        """Send a datagram as this user from the pod, from a given port or any."""
        client = opened(self.namespace, self.family, socket.SOCK_DGRAM, user)
        client.bind((any_address(self.family), port))
        return ask(client, to, self.receivers)

    def client(
        self,
        user: User,
        source: Address | None = None,
        *,
        mark: int = 0,
        transparent: bool = False,
        at: Namespace | None = None,
    ) -> socket.socket:
        """A TCP socket of this user's, not yet connected."""
        connection = opened(at or self.namespace, self.family, socket.SOCK_STREAM, user)
        if transparent:
            make_transparent(connection)
        if mark:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source:
            connection.bind(source)
        return connection


def options_of(arguments: str) -> Options:
    """The options of a command line; the proxy is 1337 unless it says otherwise."""
    chosen = options(["-u", "1337", *shlex.split(arguments)], {})
    assert chosen is not None, f"the fast parser does not take {arguments}"
    return chosen


def applied(chosen: Options) -> Changes:
    """Apply in the calling thread's namespace, without the lock: no other process is in the tests' namespace."""
    firewall, router = backends.firewall(chosen), access.router()
    return transaction.apply(build(chosen), firewall, router, Log("none"), reconcile=chosen.reconcile)


def _wire_end(family: Family, wire: int, near: str, far: str, mac: str) -> list[str]:
    """An address on one end of a wire, and the neighbour on the other end.

    The neighbour is a permanent entry, since IPv6 answers no solicitation in a link's first moments.
    """
    return [
        f"addr add {near}/{WIRE_BITS[family]} dev veth{wire}{NODAD[family]}",
        f"neigh add {far} lladdr {mac} dev veth{wire} nud permanent",
    ]


def _batch(commands: Iterable[str], namespace: Namespace | None = None) -> None:
    """Run ip(8) commands, all in one process."""
    inside = ["-n", namespace.name] if namespace else []
    subprocess.run(["ip", *inside, "-batch", "-"], input="\n".join(commands), text=True, check=True)
