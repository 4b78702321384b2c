"""A pod with its sidecar, app and peer, all of whose connections are made, to compare one kind of capture with another.

Only what is the same in two pods that are captured alike is kept of a connection: ports that the kernel chose are not.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from integration.kit.callers import Answer, Call, Caller
from integration.kit.endpoints import (
    PATIENCE,
    ROOT,
    Address,
    User,
    any_address,
    opened,
    original_destination,
    set_transparent,
)
from integration.kit.namespace import Namespace
from integration.kit.pod import ADDRESSES, APP, PROXY, Pod
from istio_init.model.rules import FAMILIES, IPV6

if TYPE_CHECKING:
    from istio_init.model.rules import Family

# As Istio's injection runs the proxy for TPROXY, which needs a capability for sockets of other hosts' addresses.
ENVOY = User(0, 1337)
USERS = (APP, PROXY, User(1337, 1000), User(1000, 1337), User(1001, 1002))
OWN_PORTS = (53, 8080, 9000, 15008, 15090)
PEER_PORTS = (53, 80, 443, 9000)
# Both listen in every configuration.
OUTBOUND, INBOUND, AGENT, DNS = 15001, 15006, 15053, 53


class Outcome(NamedTuple):
    """Where one connection ended: whom it reached, and what both ends see. Ports that the kernel chose are left out."""

    at: str
    original: Address | None = None
    source: str = ""
    own: str = ""
    peer: Address | None = None


class Side:
    """A pod with its sidecar, its app and its peer, and a caller of each user."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.listeners: dict[str, socket.socket] = {}
        self.receivers: dict[str, socket.socket] = {}

    def start(self, stack: contextlib.ExitStack, agent: User, *, transparent: bool) -> None:
        """Have everybody listen, once the pod is captured: the proxy is started after its network.

        `agent` is who answers DNS queries: one of the proxy's users, by which the rules know its answers.
        """
        # Where IPv6 is left alone ::6 is nobody's address, which the kernel would take a second to find out.
        self.pod.namespace.run("ip", "-6", "route", "add", "unreachable", ADDRESSES[IPV6].passthrough)
        for family in FAMILIES:
            self._listen("outbound", self.pod.namespace, family, OUTBOUND, PROXY, transparent=False)
            self._listen("inbound", self.pod.namespace, family, INBOUND, PROXY, transparent=transparent)
            self._listen("dns", self.pod.namespace, family, AGENT, PROXY, transparent=False)
            for port in OWN_PORTS:
                self._listen(f"app {port}", self.pod.namespace, family, port, APP, transparent=False)
            loopback, anywhere = ADDRESSES[family].loopback, any_address(family)
            # The agent listens on loopback alone, and so answers from where the query was redirected to.
            self._receive("agent", self.pod.namespace, family, (loopback, AGENT), agent)
            self._receive("app", self.pod.namespace, family, (anywhere, DNS), APP)
            self._receive("server", self.pod.peer, family, (anywhere, DNS), ROOT)
            for port in PEER_PORTS:
                self._listen(f"peer {port}", self.pod.peer, family, port, ROOT, transparent=False)
        stack.callback(self._close)
        self._callers = {user: stack.enter_context(Caller(self.pod.namespace, user)) for user in (*USERS, ENVOY)}
        self._callers[ROOT] = stack.enter_context(Caller(self.pod.peer, ROOT))

    def _listen(self, name: str, at: Namespace, family: Family, port: int, user: User, *, transparent: bool) -> None:
        connection = opened(at, family, socket.SOCK_STREAM, user)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == IPV6:
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent:
            set_transparent(connection)
        connection.bind((any_address(family), port))
        connection.listen()
        self.listeners[f"{name} {family}"] = connection

    def _receive(self, name: str, at: Namespace, family: Family, address: Address, user: User) -> None:
        """A receiver of datagrams."""
        connection = opened(at, family, socket.SOCK_DGRAM, user)
        if family == IPV6:
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        connection.bind(address)
        self.receivers[f"{name} {family}"] = connection

    def outcome(self, user: User, call: Call) -> Outcome:
        """Have the user make the connection, or send the datagram, and see where it ends; root is outside."""
        caller = self._callers[user]
        return self._exchanged(caller, call) if call.datagram else self._connected(caller, call)

    def _exchanged(self, caller: Caller, call: Call) -> Outcome:
        """Send a datagram, have its receiver answer, and see where the answer seems to come from."""
        if code := caller.call(call).code:
            return Outcome(errno.errorcode[code])
        ready, _, _ = select.select(list(self.receivers.values()), [], [], PATIENCE)
        assert ready, f"nobody was sent {call}"
        name = next(name for name, each in self.receivers.items() if each is ready[0])
        _, source = ready[0].recvfrom(16)
        ready[0].sendto(b"!", source)
        return Outcome(name, peer=caller.wait().peer)

    def _close(self) -> None:
        for each in (*self.listeners.values(), *self.receivers.values()):
            each.close()

    def _connected(self, caller: Caller, call: Call) -> Outcome:
        answer = caller.call(call)
        if answer.code:
            return Outcome(errno.errorcode[answer.code])
        return self._taken(answer)

    def _taken(self, answer: Answer) -> Outcome:
        waiting = select.poll()
        names = {each.fileno(): name for name, each in self.listeners.items()}
        for number in names:
            waiting.register(number, select.POLLIN)
        ready = waiting.poll(PATIENCE * 1000)
        assert ready, f"nobody took {answer}"
        name = names[ready[0][0]]
        accepted, source = self.listeners[name].accept()
        with accepted:
            proxied = name.startswith(("outbound", "inbound"))
            original = _destination(accepted) if proxied else None
            return Outcome(name, original, source[0], answer.local[0], answer.peer)


def _destination(accepted: socket.socket) -> Address:
    """Where the proxy takes a connection to go: its own address where nobody knows better."""
    try:
        return original_destination(accepted)
    except FileNotFoundError:
        host, port = accepted.getsockname()[:2]
        return host, port


def calls(family: Family) -> Iterator[Call]:
    """Connections of the pod's own processes."""
    there = ADDRESSES[family]
    for port in PEER_PORTS:
        for to in (there.peer, there.inner, there.outer):
            yield Call(family, (to, port))
    for port in OWN_PORTS:
        for to in (there.pod, there.second_pod, there.loopback, there.passthrough):
            yield Call(family, (to, port))
        yield Call(family, (there.pod, port), there.passthrough)
        yield Call(family, (there.pod, port), there.second_pod)
    yield Call(family, (there.outer, 443), there.second_pod)
    yield Call(family, (any_address(family), 8080))


def calls_for_callers(family: Family) -> Iterator[Call]:
    """Connections of the proxy to the pod's own addresses in a caller's name, with TPROXY's mark; not to a resolver."""
    there = ADDRESSES[family]
    for port in OWN_PORTS[1:]:
        for to in (there.pod, there.second_pod):
            yield Call(family, (to, port), there.outer, mark=1337)


def questions(family: Family) -> Iterator[Call]:
    """DNS queries of the pod's own processes, to servers whose answer comes from where it was asked."""
    for to in (ADDRESSES[family].peer, ADDRESSES[family].loopback):
        yield Call(family, (to, DNS), datagram=True)


def calls_in(family: Family) -> Iterator[Call]:
    """Connections from outside."""
    there = ADDRESSES[family]
    for port in (*OWN_PORTS, OUTBOUND, INBOUND, 22):
        yield Call(family, (there.pod, port))
        yield Call(family, (there.second_pod, port), there.inner)
