"""Packets, pods and plans for tests, in few words."""

from __future__ import annotations

import shlex
from socket import AF_INET, AF_INET6, inet_pton

from istio_init import plan
from istio_init.model.packet import Facts, Packet
from istio_init.model.routing import Address
from istio_init.model.rules import LOOPBACK_INTERFACE, TCP, Network, Ruleset
from istio_init.simulate.path import Leg, PacketPath, follow, proxy, routed, travel
from tests.kit.options import options

ARTICLE = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15020"
POD, CLIENT, SERVER = "10.0.0.5", "10.0.0.9", "10.1.2.3"
POD6, CLIENT6, SERVER6 = "fd00::5", "fd00::9", "2001:db8::3"
APP, PROXY = (1000, 1000), (1337, 1337)


def packed(address: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def interface_address(address: str, prefix: int, device: str) -> Address:
    return Address(Network(packed(address), prefix), device)


ADDRESSES = (
    interface_address("127.0.0.1", 8, LOOPBACK_INTERFACE),
    interface_address(POD, 24, "eth0"),
    interface_address("::1", 128, LOOPBACK_INTERFACE),
    interface_address(POD6, 64, "eth0"),
)


class Sidecar:
    """A plan and the pod that it is for."""

    def __init__(self, arguments: str, *, runs_as: tuple[int, int] | None = None) -> None:
        chosen = options(["-u", "1337", "--enable-ipv6", *shlex.split(arguments)], {})
        assert chosen, arguments
        self.options, self.plan, self.envoy = chosen, plan(chosen), proxy(chosen)
        if runs_as:
            self.envoy = self.envoy.replace(uid=runs_as[0], gid=runs_as[1])
        self.facts = Facts((*ADDRESSES, *self.plan.addresses), self.plan.policy_rules, self.plan.routes)

    def outbound(self, to: str, port: int, *, owner: tuple[int, int] = APP, source: str = "", **more: object) -> Packet:
        """A packet that somebody in the pod sends."""
        destination = packed(to)
        start = packed(source) if source else self.facts.source(destination)
        uid, gid = owner
        packet = Packet("OUTPUT", TCP, start, destination, 40000, port, uid=uid, gid=gid).replace(**more)
        return routed(packet, self.facts).packet

    def inbound(self, port: int, *, to: str = POD, source: str = CLIENT, **more: object) -> Packet:
        """A packet that comes to the pod."""
        packet = Packet("PREROUTING", TCP, packed(source), packed(to), 40000, port, in_interface="eth0")
        return packet.replace(**more)

    def leg(self, packet: Packet) -> Leg:
        """The packet's way alone."""
        return travel(self._ruleset(packet), packet, self.facts, self.envoy, "")

    def path(self, packet: Packet) -> PacketPath:
        """The packet's way, and what follows from it."""
        return follow(self._ruleset(packet), packet, self.facts, self.envoy)

    def ends(self, packet: Packet) -> list[str]:
        """Where each leg of the path ends, and LOOP where it never does."""
        path = self.path(packet)
        return [leg.end for leg in path.legs] + ["LOOP"] * bool(path.loop)

    def _ruleset(self, packet: Packet) -> Ruleset:
        return next(ruleset for ruleset in self.plan.rulesets if ruleset.family == packet.family)
