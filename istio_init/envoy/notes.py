"""Remarks n1 to n4 about rules and proxy, which break no claim."""

from __future__ import annotations

from istio_init.envoy import chains
from istio_init.envoy.addresses import packed
from istio_init.envoy.client import CLIENTS
from istio_init.envoy.fit import OWN_PORTS, FitCase, Note
from istio_init.envoy.node import plain
from istio_init.formats.addresses import address_text
from istio_init.planning.capture import AGENT_DNS_PORT
from istio_init.verify.header_space import DESTINATION_PORT, intersection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.packet import Packet
    from istio_init.model.rules import Network


def notes(case: FitCase, listening: frozenset[int] | None) -> Iterator[Note]:
    """All notes for one family. `listening` are the pod's ports with a listening process, None if unknown."""
    yield from _refused_clients(case)
    yield from _swallowed(case)
    yield from _ambiguous(case)
    yield from _hanging(case)
    yield from _admin(case)
    yield from _probes(case)
    yield from _resolver(case, listening)


def _inbound_ports(case: FitCase) -> dict[int, Packet]:
    """A packet for each port that the inbound listener has chains for."""
    envoy = case.pod.envoy
    packets: dict[int, Packet] = {}
    for packet in case.arriving(envoy.inbound_port):
        if packet.destination_port not in {envoy.inbound_port, envoy.outbound_port, envoy.tunnel_port}:
            packets.setdefault(packet.destination_port, packet)
    listener = case.pod.configuration.listeners.bound(bytes(4 if case.family == "ipv4" else 16), envoy.inbound_port)
    ports = {port for chain in chains.chains(listener) for port in chain.criteria[0]} if listener else set()
    return {port: packet for port, packet in packets.items() if port in ports}


def _refused_clients(case: FitCase) -> Iterator[Note]:
    for port, packet in sorted(_inbound_ports(case).items()):
        refused = [
            name
            for name, client in CLIENTS.items()
            if any(path.flag == "NR" and path.end == "closes" for path in case.follow(packet, client))
        ]
        if refused:
            yield Note("n1", f"inbound port {port}: no filter chain for {', '.join(refused)}: the connection is reset")


def _hanging(case: FitCase) -> Iterator[Note]:
    for port, packet in sorted(_inbound_ports(case).items()):
        if any(path.end == "hangs" for path in case.follow(packet, CLIENTS["server-first"])):
            yield Note("n3", f"inbound port {port}: a server that speaks first hangs behind an inspector")


def _swallowed(case: FitCase) -> Iterator[Note]:
    envoy = case.pod.envoy
    every = case.pod.configuration.listeners
    first = every.bound(bytes(4 if case.family == "ipv4" else 16), envoy.outbound_port)
    if first is None or not first.hands_on:
        return
    ports = {socket.port for each in every.all if each.bound for socket in each.sockets}
    for port in sorted(ports - {envoy.outbound_port, envoy.inbound_port}):
        at = case.space.cube(destination_port=case.space.only(DESTINATION_PORT, port))
        if any(intersection(each.cube, at) for each in case.captured("OUTPUT", envoy.outbound_port)):
            yield Note(
                "n2", f"outbound calls to any host's port {port} end at Envoy's own listener; exclude it with -o"
            )


def _ambiguous(case: FitCase) -> Iterator[Note]:
    for listener in case.pod.configuration.listeners.all:
        every = [dict(zip(chains.NAMES, chain.criteria, strict=True)) for chain in chains.chains(listener)]
        for port in {named["destination_port"] for named in every}:
            same_port = [named for named in every if named["destination_port"] == port]
            for field in ("prefix_ranges", "source_prefix_ranges", "direct_source_prefix_ranges"):
                if any(_has_whole(named[field]) for named in same_port) and any(
                    not named[field] for named in same_port
                ):
                    text = f"{plain(listener.name)}: 0.0.0.0/0 beside chains without {field}: Envoy keeps one by chance"
                    yield Note("n3", text, listener.node.path)


def _has_whole(networks: tuple[Network, ...]) -> bool:
    return any(each.prefix == 0 for each in networks)


def _admin(case: FitCase) -> Iterator[Note]:
    socket = case.pod.configuration.dump.bootstrap.at("admin", "address", "socket_address")
    address = packed(socket.get("address").text()) if socket else None
    if address and address[0] != 127 and address != bytes(15) + b"\1":
        port = socket.get("port_value").port()
        yield Note(
            "n3",
            f"Envoy's admin interface listens at {address_text(address)}, port {port}, beyond loopback",
            socket.path,
        )


def _probes(case: FitCase) -> Iterator[Note]:
    for port in OWN_PORTS:
        at = case.space.cube(destination_port=case.space.only(DESTINATION_PORT, port))
        if any(intersection(each.cube, at) for each in case.captured("PREROUTING", case.pod.envoy.inbound_port)):
            yield Note(
                "n4", f"port {port} goes through Envoy's inbound listener; exclude it with -d, or STRICT breaks probes"
            )


def _resolver(case: FitCase, listening: frozenset[int] | None) -> Iterator[Note]:
    if case.options.redirect_dns and listening is not None and AGENT_DNS_PORT not in listening:
        yield Note("n4", f"DNS is captured, but nothing listens on port {AGENT_DNS_PORT}: lookups get no answer")
