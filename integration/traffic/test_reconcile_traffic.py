"""While a run brings one plan to another, no connection passes uncaptured, and those that exist go on."""

from __future__ import annotations

import contextlib
import select
import shlex
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from integration.kit import program
from integration.kit.endpoints import PATIENCE, Address, ask, connect, opened
from integration.kit.pod import APP, PROXY, Pod, options_of
from istio_init.errors import KernelError
from istio_init.log import Log
from istio_init.model.rules import IPV4, IPV6
from istio_init.planning.plan import build
from istio_init.runner import access, backends, transaction

if TYPE_CHECKING:
    from istio_init.kernel import Firewall
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, Table, TableName

DNS = "--redirect-dns --dns-servers 10.77.0.1,fd77::1"
REDIRECT = f"-m REDIRECT -i '*' -b '*' {DNS}"
TPROXY = f"-m TPROXY -i '*' -b '*' {DNS}"
CHANGES = {
    "to TPROXY": (REDIRECT, TPROXY),
    "from TPROXY": (TPROXY, REDIRECT),
    "another mark and table": (TPROXY, f"{TPROXY} -t 0x111 -r 7"),
    "other ports of the proxy": (REDIRECT, f"{REDIRECT} -p 15101 -z 15106"),
    "other ports of the proxy in TPROXY": (TPROXY, f"{TPROXY} -p 15101 -z 15106"),
    "a list instead of all": (REDIRECT, f"-i 10.0.0.0/8,fd00::/8 -b 80,8080 {DNS}"),
    "all instead of a list": (f"-m TPROXY -i 10.0.0.0/8,fd00::/8 -b 80,8080 {DNS}", TPROXY),
    "all servers": (REDIRECT, f"{TPROXY} --capture-all-dns --drop-invalid"),
}


@pytest.fixture(params=[IPV4, IPV6])
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod whose sidecar listens at its own ports and at others, transparently, and whose app listens, too."""
    with Pod(request.param) as fresh:
        for port in (15006, 15106):
            fresh.listen(f"inbound:{port}", port, transparent=True)
        for port in (15001, 15101):
            fresh.listen(f"outbound:{port}", port)
        fresh.listen("app", 8080)
        fresh.listen_at_peer("peer", 80)
        fresh.receive("agent", (fresh.addresses.loopback, 15053), PROXY)
        fresh.receive("server", (fresh.addresses.peer, 53), at=fresh.peer)
        yield fresh


class WatchedFirewall:
    """The real Firewall of the calling thread's namespace; `look` is called after each change."""

    def __init__(self, look: Callable[[], None], options: str = "") -> None:
        self.real: Firewall = backends.firewall(options_of(options))
        self.read, self.look = self.real.read, look

    def replace(self, family: Family, desired: Table) -> None:
        """As Firewall.replace."""
        self.real.replace(family, desired)
        self.look()

    def remove(self, family: Family, name: TableName, desired: Table | None = None) -> None:
        """As Firewall.remove."""
        self.real.remove(family, name, desired)
        self.look()


class WatchedRouter:
    """The same for routing, one entry at a time."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.real, self.look = access.router(), look
        self.read, self.addresses = self.real.read, self.real.addresses

    def replace(self, desired: tuple[RoutingEntry, ...], standing: tuple[RoutingEntry, ...] | None = None) -> None:
        """As Router.replace."""
        for entry in desired:
            self.real.replace((entry,))
            self.look()

    def remove(self, entries: tuple[RoutingEntry, ...]) -> None:
        """As Router.remove."""
        for entry in reversed(entries):
            self.real.remove((entry,))
            self.look()


class Traffic:
    """Connections and queries of all kinds, to be made again and again, and two connections that exist."""

    def __init__(self, pod: Pod) -> None:
        self.pod, self.looks = pod, 0
        # Made beforehand, since making another user's socket takes a process of its own.
        self.tcp = [opened(pod.namespace, pod.family, socket.SOCK_STREAM, APP) for _ in range(40)]
        self.udp = [opened(pod.namespace, pod.family, socket.SOCK_DGRAM, APP) for _ in range(40)]
        self.standing = [
            self._stand(opened(pod.peer, pod.family, socket.SOCK_STREAM), (pod.addresses.pod, 8080)),
            self._stand(self.tcp.pop(), (pod.addresses.peer, 80)),
        ]

    def _stand(self, near: socket.socket, to: Address) -> tuple[socket.socket, socket.socket]:
        near.settimeout(PATIENCE)
        near.connect(to)
        ready, _, _ = select.select(list(self.pod.listeners.values()), [], [])
        far, _ = ready[0].accept()
        far.settimeout(PATIENCE)
        return near, far

    def look(self) -> None:
        """Everything is captured, and those that exist are heard at both ends."""
        self.looks += 1
        assert self.pod.dial_in((self.pod.addresses.pod, 8080)).at.startswith("inbound")
        outbound = connect(self.tcp.pop(), (self.pod.addresses.peer, 80), self.pod.listeners)
        assert outbound.at.startswith("outbound")
        assert ask(self.udp.pop(), (self.pod.addresses.peer, 53), self.pod.receivers).at == "agent"
        for near, far in self.standing:
            near.sendall(b"?")
            assert far.recv(1) == b"?"
            far.sendall(b"!")
            assert near.recv(1) == b"!"

    def close(self) -> None:
        """Close what was opened."""
        for each in (*self.tcp, *self.udp, *(end for pair in self.standing for end in pair)):
            each.close()


@pytest.mark.parametrize("change", CHANGES)
def test_after_each_step(pod: Pod, change: str) -> None:
    before, after = CHANGES[change]
    pod.apply(before)
    plan = build(options_of(f"{after} --enable-ipv6"))
    with contextlib.closing(Traffic(pod)) as traffic:

        def reconcile() -> None:
            firewall, router = WatchedFirewall(traffic.look), WatchedRouter(traffic.look)
            transaction.apply(plan, firewall, router, Log("none"), reconcile=True)

        traffic.look()
        pod.namespace.inside(reconcile)
        traffic.look()
        assert traffic.looks > 2


def test_at_every_moment(pod: Pod) -> None:
    """Connections without a break while the program goes to and fro between REDIRECT and TPROXY."""
    pod.apply(REDIRECT)
    for options in (TPROXY, REDIRECT, TPROXY, REDIRECT):
        argv = ("-u", "1337", *shlex.split(options), "--enable-ipv6", "--reconcile")
        with program.start(pod.namespace, *argv) as run:
            while run.poll() is None:
                assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound:15006"
            _, message = run.communicate()
        assert run.returncode == 0, message


def test_putting_back_lets_nothing_pass(pod: Pod) -> None:
    """A reconcile that fails at its last step goes all the way back, and captures on the way."""
    pod.apply(REDIRECT)
    plan = build(options_of(f"{TPROXY} --enable-ipv6"))
    with contextlib.closing(Traffic(pod)) as traffic:

        def fail() -> None:
            raise KernelError("the last step")

        def reconcile() -> None:
            firewall, router = WatchedFirewall(traffic.look), WatchedRouter(traffic.look)
            transaction.apply(plan, firewall, router, Log("none"), reconcile=True, on_commit=fail)

        with pytest.raises(KernelError, match="the last step"):
            pod.namespace.inside(reconcile)
        traffic.look()
    assert not pod.apply(REDIRECT)
