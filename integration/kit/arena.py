"""A pod in which single packets are sent, and what the rules did to each is seen: which it met, marks, zones, end.

Only the tests' packets pass (raw_packets.OURS); whatever the kernel says by itself, such as a reset, is dropped before
the first table. Behind the last one, what is delivered (INPUT) and what is sent (POSTROUTING) is logged.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from integration.kit.backends import BACKENDS
from integration.kit.endpoints import set_transparent
from integration.kit.nflog import Log, Logged
from integration.kit.pod import PEER_MAC, POD_MAC, Pod, applied, options_of
from integration.kit.raw_packets import OURS, PRIORITY, Sender
from integration.kit.rule_counters import Place
from integration.kit.witnesses import WITNESSES, Witness
from istio_init.cli.verbs.subject import live_facts
from istio_init.model.packet import Facts, Packet
from istio_init.model.rules import FAMILIES, IPV4, Ruleset
from istio_init.options.table import Options
from istio_init.planning.plan import build
from istio_init.runner import backends

if TYPE_CHECKING:
    from istio_init.model.rules import Family

GROUP = 7
INTERFACES = ("veth0", "veth1")
# How long a packet may take to show on a busy machine; it is not waited for where all is as it should be.
PATIENCE = 20.0

# veth0 takes everything, veth1 no martians.
SYSCTLS = (
    *(f"net.ipv4.conf.{each}.{name}=0"
      for each in ("all", "default", *INTERFACES, "lo")
      for name in ("rp_filter", "accept_local", "route_localnet", "send_redirects")),
    "net.ipv4.conf.veth0.accept_local=1",
    "net.ipv4.conf.veth0.route_localnet=1",
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
)  # fmt: skip

# The log's prefix tells what connection tracking knows: zone/mark; no prefix where there is no connection.
MARKS = (0, 0x111, 1337, 1338)
ENDS = "; ".join(
    f'ct zone {zone} ct mark {mark} log prefix "{zone}/{mark}" group {GROUP} accept'
    for zone in range(3)
    for mark in MARKS
)

GATES = f"""
table inet arena {{
  chain gate {{ type filter hook prerouting priority -450; policy drop; jump ours; }}
  chain out {{ type filter hook output priority -450; policy drop; meta priority 0:{PRIORITY} jump traced; }}
  chain ours {{ ip dscp {OURS} jump traced; ip6 dscp {OURS} jump traced; }}
  chain traced {{ meta nftrace set 1 accept; }}
  chain delivered {{ type filter hook input priority 300; {ENDS}; log group {GROUP}; }}
  chain sent {{ type filter hook postrouting priority 300; {ENDS}; log group {GROUP}; }}
}}
"""
SILENCE = """
table inet silence {
  chain silent { type filter hook prerouting priority -450; policy drop; }
}
"""


class Arena:
    """The pod and its peer, wired for single packets, from `with` to its end; `backend` is one of BACKENDS."""

    def __init__(self, backend: str = "legacy") -> None:
        self.backend = backend

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.pod = stack.enter_context(Pod(IPV4))
            self.pod.namespace.run("sysctl", "-q", "-w", *SYSCTLS)
            self.pod.namespace.run("nft", "-f", "-", text=GATES)
            self.pod.peer.run("nft", "-f", "-", text=SILENCE)
            stack.enter_context(self.pod.namespace.inside(_transparent))
            self._log = self.pod.namespace.inside(lambda: Log(GROUP))
            stack.callback(self._log.close)
            self._sender, self._wire = Sender(), self.pod.peer.inside(_wires)
            stack.callback(self._sender.close)
            stack.callback(self._wire.close)
            self.witness: Witness = WITNESSES[self.backend](self.pod.namespace)
            stack.callback(self.witness.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def options(self, line: str) -> Options:
        """The options of a command line, for both families and this backend."""
        return options_of(f"{shlex.join(BACKENDS[self.backend])} --enable-ipv6 {line}")

    def apply(self, options: Options) -> dict[Family, Ruleset]:
        """Bring the pod to these options, whatever stood before, with no connection left over; what exists then."""
        desired = options.replace(reconcile=True)
        self.pod.namespace.inside(lambda: applied(desired))
        self.pod.namespace.completed("conntrack", "-F")
        return self.look_again(options, build(options).rulesets)

    def look_again(self, options: Options, expecting: tuple[Ruleset, ...]) -> dict[Family, Ruleset]:
        """Read what exists, now that the tables were written; sets are read as the rules that are expected."""
        firewall = backends.firewall(options)
        rules = {
            each.family: self.pod.namespace.inside(partial(firewall.read, each.family, each)) for each in expecting
        }
        self.witness.look_again(rules)
        return rules

    def facts(self) -> Facts:
        """What routing of the pod knows."""
        return self.pod.namespace.inside(live_facts)

    def send(self, packet: Packet, flags: int, met: list[Place], logged: int) -> tuple[list[Place], list[Logged]]:
        """Send one packet; returns what it met and what was logged, in order.

        `met` and `logged` are what is expected: until they are there, this waits.
        """
        assert (self._log.read(), self.witness.met()) == ([], []), "seen too late, or twice"
        if packet.hook == "OUTPUT":
            self.pod.namespace.inside(lambda: self._sender.open(packet))
            self._sender.send(packet, flags)
        else:
            self._wire.put(packet, packet.in_interface, POD_MAC, PEER_MAC, flags)
        observed: list[Logged] = []
        result: list[Place] = []
        deadline = time.monotonic() + PATIENCE
        while True:
            observed += self._log.read()
            result += self.witness.met()
            if (result == met and len(observed) == logged) or time.monotonic() > deadline:
                return result, observed


def _transparent() -> socket.socket:
    """The listener without which TPROXY drops what it matches; of both families."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    set_transparent(sock)
    sock.bind(("::", 15006))
    sock.listen()
    return sock


def _wires() -> Sender:
    sender = Sender()
    for interface in INTERFACES:
        for family in FAMILIES:
            sender.open_wire(interface, family)
    return sender
