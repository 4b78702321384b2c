"""Capture by eBPF against real netfilter: two pods that are alike, one with Istio's rules and one without any.

Every connection ends at the same listener, with the same addresses seen by everybody.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from integration.kit.callers import Answer, Call, Caller
from integration.kit.ebpf_node import EbpfNode
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
from integration.kit.pod import ADDRESSES, APP, PROXY, Pod, options_of
from istio_init.log import Log
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from istio_init.model.rules import Family

USERS = (APP, PROXY, User(1337, 1000), User(1000, 1337), User(1001, 1002))
OWN_PORTS = (53, 8080, 9000, 15008, 15090)
PEER_PORTS = (53, 80, 443, 9000)
# Both listen in every configuration.
OUTBOUND, INBOUND, AGENT, DNS = 15001, 15006, 15053, 53


@pytest.fixture(scope="module")
def node() -> Iterator[EbpfNode]:
    with EbpfNode() as ebpf_node:
        yield ebpf_node


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
        self.callers = {user: stack.enter_context(Caller(self.pod.namespace, user)) for user in USERS}
        self.outside = stack.enter_context(Caller(self.pod.peer, ROOT))

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

    def asked(self, caller: Caller, call: Call) -> Outcome:
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

    def outcome(self, caller: Caller, call: Call) -> Outcome:
        """Make the connection and see where it ends."""
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


ports = st.lists(
    st.sampled_from(["53", "80", "443", "8080", "9000", "15008", "15090", "8000-9000"]), min_size=1, max_size=3
)
nets = st.lists(
    st.sampled_from(
        [
            *("10.77.0.0/24", "10.78.0.2", "203.0.113.0/24", "10.99.0.1/32", "127.0.0.0/8", "0.0.0.0/0", "10.0.0.0/8"),
            *("fd77::/64", "fd99::1", "2001:db8::/32", "::1", "::/0"),
        ]
    ),
    min_size=1,
    max_size=3,
)
ids = st.lists(st.sampled_from(["1337", "1000", "1001", "0"]), min_size=1, max_size=3)
groups = st.lists(st.sampled_from(["1000", "1002", "1337"]), min_size=1, max_size=2)
servers = st.lists(st.sampled_from(["10.77.0.1", "203.0.113.9", "fd77::1"]), min_size=1, max_size=2)


def maybe(flag: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """The flag with a value, or nothing."""
    return st.just([]) | values.map(lambda value: [flag, value])


def joined(values: st.SearchStrategy[list[str]]) -> st.SearchStrategy[str]:
    """A comma list."""
    return values.map(",".join)


configurations = st.tuples(
    st.sampled_from([["-b", "*"], ["-b", "*"], ["-b", "8080,15090"], []]),
    st.sampled_from([["-i", "*"], ["-i", "*"], []]) | maybe("-i", joined(nets)),
    maybe("-d", joined(ports)),
    maybe("-x", joined(nets)),
    maybe("-q", joined(ports)),
    maybe("-o", joined(ports)),
    maybe("-u", joined(ids)),
    maybe("-g", joined(ids)),
    maybe("--istio-outbound-owner-groups", joined(groups)),
    maybe("--istio-outbound-owner-groups-exclude", joined(groups)),
    maybe("--istio-outbound-ipv4-loopback-cidr", st.just("127.0.0.0/8")),
    st.sampled_from([[], [], ["--redirect-dns", "--capture-all-dns"]])
    | servers.map(lambda each: ["--redirect-dns", "--dns-servers", ",".join(each)]),
    st.sampled_from([["--enable-ipv6"], ["--enable-ipv6"], ["--no-enable-ipv6"]]),
).map(lambda parts: " ".join(f"'{word}'" for part in parts for word in part))


# What fails is printed whole; to shrink it would take minutes.
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(configuration=configurations)
def test_every_connection_ends_as_with_rules(node: EbpfNode, configuration: str) -> None:
    compare(node, configuration)


def compare(node: EbpfNode, configuration: str) -> None:
    """Every connection, with rules and by eBPF."""
    with contextlib.ExitStack() as stack:
        ruled, captured = (Side(stack.enter_context(Pod(IPV4))) for _ in range(2))
        ruled.pod.apply(configuration)
        chosen = options_of(configuration).replace(
            capture_backend="ebpf", network_namespace=captured.pod.namespace.path
        )
        socket_capture.add(chosen, node.installation, Log("none"))
        for side in (ruled, captured):
            side.start(stack, User(chosen.proxy_uid[0], (chosen.proxy_gid or chosen.proxy_uid)[0]), transparent=False)
        for family in FAMILIES:
            for user in USERS:
                for call in calls(family):
                    expected = ruled.outcome(ruled.callers[user], call)
                    result = captured.outcome(captured.callers[user], call)
                    assert result == expected, f"{configuration}: {user} {call}"
                for call in questions(family):
                    expected, result = (
                        ruled.asked(ruled.callers[user], call),
                        captured.asked(captured.callers[user], call),
                    )
                    assert result == expected, f"{configuration}: {user} {call}"
            for call in calls_in(family):
                expected, result = ruled.outcome(ruled.outside, call), captured.outcome(captured.outside, call)
                assert result == expected, f"{configuration}: from outside {call}"
