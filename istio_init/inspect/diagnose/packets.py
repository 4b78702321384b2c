"""The packets that a diagnosis follows: calls that the plan captures, so that the namespace can be compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model import parsers
from istio_init.model.packet import Facts, Packet
from istio_init.model.rules import TCP, UDP, Network
from istio_init.planning.capture import DNS_PORT
from istio_init.simulate.path import follow, routed
from istio_init.simulate.report import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.diagnose.case import Situation
    from istio_init.model.rules import Family, PortRange
    from istio_init.simulate.path import PacketPath

# An application that is neither the proxy nor root, and a client's port.
APP, CLIENT_PORT = (1000, 1000), 40000
# Hosts that no namespace has (RFC 5737, RFC 3849), a usual service, and public ones.
HOSTS = {
    "ipv4": [bytes((198, 51, 100, 7)), bytes((10, 96, 0, 10)), bytes((172, 20, 0, 10)), bytes((8, 8, 8, 8))],
    "ipv6": [bytes.fromhex("20010db80001") + bytes(9) + b"\7", bytes.fromhex("26064700") + bytes(11) + b"\1"],
}
POD = {"ipv4": bytes((192, 0, 2, 10)), "ipv6": bytes.fromhex("20010db8") + bytes(11) + b"\x0a"}
PORTS, APP_PORTS = (443, 80, 9080, 7), (8080, 9080, 80, 7)


def calls_out(about: Situation, family: Family, ids: tuple[int, int] = APP) -> PacketPath | None:
    """The path of a call from the app to the world that the plan captures; None where the plan captures none."""
    return next((path for packet in _outbound(about, family) if (path := _as_planned(about, packet, ids))), None)


def calls_in(about: Situation, family: Family) -> PacketPath | None:
    """The path of a call from outside to the app that the plan captures; None where it captures none."""
    return next((path for packet in _inbound(about, family) if (path := _as_planned(about, packet))), None)


def broken(about: Situation) -> PacketPath | None:
    """A call that the plan captures and that is not captured."""
    for family in about.families:
        for path in (calls_out(about, family), calls_in(about, family)):
            if path is not None and not is_captured(path):
                return path
    return None


def sent(about: Situation, family: Family, ids: tuple[int, int]) -> PacketPath:
    """The path of a call to the world by someone, whatever the plan does with it."""
    first = calls_out(about, family)
    packet = first.legs[0].packet if first else next(_outbound(about, family))
    return followed(about, packet.replace(uid=ids[0], gid=ids[1]))


def _as_planned(about: Situation, packet: Packet, ids: tuple[int, int] = APP) -> PacketPath | None:
    """The packet's path through what exists, if the plan captures it as the app's."""
    planned = about.plan.ruleset(packet.family)
    if planned is None:
        return None
    plan = about.plan
    facts = about.facts.replace(lookup=None, policy_rules=plan.policy_rules, routes=plan.routes, masked_rules=())
    if not is_captured(follow(planned, packet, facts, about.envoy)):
        return None
    return followed(about, packet.replace(uid=ids[0], gid=ids[1]) if packet.hook == "OUTPUT" else packet)


def followed(about: Situation, packet: Packet) -> PacketPath:
    """A packet's path through the rules that exist."""
    if packet.hook == "OUTPUT":
        packet = routed(packet, about.facts).packet
    return follow(about.ruleset(packet.family), packet, about.facts, about.envoy)


def is_captured(path: PacketPath) -> bool:
    """Whether the packet reaches the proxy, and no loop."""
    return verdict(path) == "captured"


def _outbound(about: Situation, family: Family) -> Iterator[Packet]:
    listed = about.options.istio_service_cidr
    hosts = [*HOSTS[family]]
    if listed != parsers.ALL:
        hosts = [inside(each) for each in listed if each.family == family] + hosts
    ports = [*(each.low for each in about.options.istio_outbound_ports), *PORTS]
    for host in hosts:
        for port in ports:
            yield outbound(about.facts, host, port)


def _inbound(about: Situation, family: Family) -> Iterator[Packet]:
    listed = about.options.istio_inbound_ports
    ports = APP_PORTS if listed == parsers.ALL else _lows(listed)
    for client in HOSTS[family]:
        for port in ports:
            yield inbound(about.facts, client, port)


def _lows(ports: tuple[PortRange, ...] | str) -> tuple[int, ...]:
    return tuple(each.low for each in ports if not isinstance(each, str))


def outbound(facts: Facts, to: bytes, port: int, ids: tuple[int, int] = APP, protocol: int = TCP) -> Packet:
    """A new connection (or datagram) of the pod."""
    packet = Packet("OUTPUT", protocol, bytes(len(to)), to, CLIENT_PORT, port, uid=ids[0], gid=ids[1])
    return routed(packet.replace(source=facts.source_for(packet)), facts).packet


def inbound(facts: Facts, client: bytes, port: int, interface: str = "") -> Packet:
    """A new connection to the pod."""
    family: Family = "ipv4" if len(client) == 4 else "ipv6"
    device = interface or facts.uplink
    own = facts.primary(device, client) or facts.primary(facts.uplink, client) or POD[family]
    return Packet("PREROUTING", TCP, client, own, CLIENT_PORT, port, in_interface=device)


def answer(about: Situation, family: Family) -> PacketPath:
    """The path of the app's answer to the sidecar, with TPROXY: it goes to the client's address, and must stay here."""
    client = HOSTS[family][0]
    own = about.facts.primary(about.facts.uplink, client) or POD[family]
    mark = about.options.istio_inbound_tproxy_mark
    packet = Packet(
        "OUTPUT", TCP, own, client, APP_PORTS[0], CLIENT_PORT, uid=APP[0], gid=APP[1], ctstate="ESTABLISHED",
        connmark=mark, zone=0, tracked=True, reply=True,
    )  # fmt: skip
    return followed(about, packet)


def query(facts: Facts, server: bytes) -> Packet:
    """A DNS query of the app."""
    return outbound(facts, server, DNS_PORT, protocol=UDP)


def inside(network: Network) -> bytes:
    """An address of a network, not its first where it has others."""
    bits = len(network.address) * 8
    number = int.from_bytes(network.address) + (1 if network.prefix < bits else 0)
    return number.to_bytes(bits // 8)


def has_global(facts: Facts, family: Family) -> bool:
    """Whether the pod has an address of the family by which it reaches others."""
    return any(
        each.network.family == family and each.device != "lo" and not is_link_local(each.network.address)
        for each in facts.addresses
    )


def is_link_local(address: bytes) -> bool:
    """Whether an address is for one link alone."""
    return address[:2] == b"\xa9\xfe" if len(address) == 4 else address[0] == 0xFE and address[1] & 0xC0 == 0x80
