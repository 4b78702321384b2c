"""The claims P1 to P12 about rules and proxy, each with the outage that it prevents; docs/envoy.md lists them."""

from __future__ import annotations

from istio_init.envoy import chains, clusters, listeners, references
from istio_init.envoy.claim_packets import (
    HTTP,
    PLAIN,
    application_cube,
    caller_of,
    first_packet,
    inbound_packet,
    packet_to,
    packets_to_port,
)
from istio_init.envoy.client import CLIENTS, RAW_BUFFER, TLS
from istio_init.envoy.fit import Claim, FitCase, Misfit
from istio_init.envoy.node import plain
from istio_init.envoy.passage import ListenerArrival
from istio_init.envoy.walk import walk
from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.planning.capture import uses_tproxy
from istio_init.simulate.path import Leg
from istio_init.verify.header_space import DESTINATION_PORT, GID, IN, SOURCE, UID, intersection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.envoy.client import Client
    from istio_init.envoy.listeners import Listener
    from istio_init.envoy.path import Path
    from istio_init.model.packet import Packet
    from istio_init.model.rules import Hook

HTTP_ALPN = frozenset({"http/1.0", "http/1.1", "h2c"})

P1 = Claim("P1", "Envoy listens at the ports that the rules give connections to")
P2 = Claim("P2", "the outbound listener hands connections on to the listener of their original destination")
P3 = Claim("P3", "the inbound listener restores the original destination")
P4 = Claim("P4", "TPROXY finds a transparent listener, and only TPROXY a proxy that dials from the client's address")
P5 = Claim("P5", "connections of the inbound listener reach the app and are not captured again")
P6 = Claim("P6", "connections to Envoy's own ports come to an end")
P7 = Claim("P7", "every cluster and route configuration that is named exists, and Envoy refused no update")
P8 = Claim("P8", "no cluster for outbound connections is bound to a loopback address")
P9 = Claim("P9", "no port that bypasses Envoy has a filter chain with a policy")
P10 = Claim("P10", "the rules spare what Envoy sends")
P11 = Claim("P11", "every filter chain that asks for TLS, SNI or a protocol has an inspector to find them out")
P12 = Claim("P12", "the rules capture every address that Envoy has an outbound listener or a domain for")


def misfits(case: FitCase) -> Iterator[Misfit]:
    """All broken claims, for one family."""
    for check in CHECKS.values():
        yield from check(case)


def _misfit(case: FitCase, claim: Claim, finding: str, packet: Packet, client: Client = HTTP) -> Misfit:
    return Misfit(claim, case.family, finding, client, case.follow(packet, client)[0])


def _ports(case: FitCase) -> tuple[tuple[int, Hook, str], ...]:
    envoy = case.pod.envoy
    return (envoy.outbound_port, "OUTPUT", "outbound"), (envoy.inbound_port, "PREROUTING", "inbound")


def _listener(case: FitCase, port: int) -> Listener | None:
    return case.pod.configuration.listeners.bound(bytes(4 if case.family == "ipv4" else 16), port)


def p1(case: FitCase) -> Iterator[Misfit]:
    """A port without a listener: connections are refused."""
    for port, hook, direction in _ports(case):
        packet = first_packet(case, hook, port)
        if packet is not None and not _reached(case, packet):
            yield _misfit(
                case, P1, f"no listener is bound to port {port} for {case.family} {direction} connections", packet
            )


def _reached(case: FitCase, packet: Packet) -> str:
    """The Envoy listener that a packet reaches; empty if there is none."""
    path = case.follow(packet, HTTP)[0]
    return path.passages[0].listener if path.passages else ""


def p2(case: FitCase) -> Iterator[Misfit]:
    """Without handoff, connections for other listeners are blackholed or passed through."""
    port, hook, _ = _ports(case)[0]
    listener, packet = _listener(case, port), first_packet(case, hook, port)
    if listener is None or packet is None or listener.hands_on:
        return
    others = [each for each in case.pod.configuration.listeners.all if not each.bound]
    if others:
        finding = f"{plain(listener.name)} has no use_original_dst: {len(others)} listeners get no connection"
        yield _misfit(case, P2, finding, packet).replace(where=listener.node.path)
    elif not listener.restores:
        finding = f"{plain(listener.name)} does not restore the original destination (original_dst)"
        yield _misfit(case, P2, finding, packet).replace(where=listener.node.path)


def p3(case: FitCase) -> Iterator[Misfit]:
    """Without the original destination, every connection is blackholed."""
    port, hook, _ = _ports(case)[1]
    listener, packet = _listener(case, port), first_packet(case, hook, port)
    if listener is not None and packet is not None and not listener.restores:
        finding = f"{plain(listener.name)} has neither original_dst nor use_original_dst"
        yield _misfit(case, P3, finding, packet).replace(where=listener.node.path)


def p4(case: FitCase) -> Iterator[Misfit]:
    """Rules for TPROXY with a proxy for REDIRECT, or the reverse: connections time out."""
    port, hook, _ = _ports(case)[1]
    listener, packet = _listener(case, port), first_packet(case, hook, port)
    if listener is None or packet is None:
        return
    transparent = any(each.tproxy == port for each in case.captured(hook, port))
    spoofing = listener.filter(listeners.ORIGINAL_SRC)
    name, mark = plain(listener.name), case.options.istio_inbound_tproxy_mark
    if transparent and not listener.transparent:
        yield _misfit(case, P4, f"TPROXY, and {name} is not transparent", packet).replace(where=listener.node.path)
    if spoofing and not transparent:
        finding = f"REDIRECT, and {name} dials from the client's address (original_src), whose answers leave the pod"
        yield _misfit(case, P4, finding, packet).replace(where=spoofing.node.path)
    actual_mark = spoofing.node.at("typed_config", "mark").number() if spoofing else mark
    if transparent and actual_mark != mark:
        finding = f"{name} marks what it dials with {actual_mark}, the rules and routes expect {mark} (-t)"
        yield _misfit(case, P4, finding, packet).replace(where=spoofing.node.path if spoofing else "")


def p5(case: FitCase) -> Iterator[Misfit]:
    """With a wrong source address, Envoy's connection to the app is captured, in a loop."""
    own = {case.pod.envoy.outbound_port, case.pod.envoy.inbound_port}
    reported: set[str] = set()
    for packet in case.arriving(case.pod.envoy.inbound_port):
        for client in () if packet.destination_port in own else case.clients(case.pod.envoy.inbound_port):
            for path in case.follow(packet, client):
                cluster = path.passages[-1].cluster if path.passages else ""
                if path.loop and cluster not in reported:
                    reported.add(cluster)
                    finding = f"{_source_text(path)} comes back to {plain(path.loop)}"
                    yield Misfit(P5, case.family, finding, client, path, cluster)


def _source_text(path: Path) -> str:
    legs = [each for each in path.stages if isinstance(each, Leg)]
    cluster = plain(path.passages[-1].cluster)
    return f"what cluster {cluster} dials from {address_text(legs[-1].packet.source)}"


def p6(case: FitCase) -> Iterator[Misfit]:
    """A connection to a listener's own port loops."""
    client = CLIENTS["tcp"]
    for port, _, _ in _ports(case):
        for path in (path for packet in packets_to_port(case, port) for path in case.follow(packet, client)):
            if path.loop:
                yield Misfit(P6, case.family, f"port {port} leads back to itself", client, path)
                break


def p7(case: FitCase) -> Iterator[Misfit]:
    """A missing cluster causes 503, missing routes cause 404, and after a rejected update the old state remains."""
    for each in case.pod.configuration.dump.refused:
        name = plain(each.name) if each.name else "(no name)"
        yield Misfit(P7, case.family, f"Envoy refused an update of {name}: {plain(each.why)}", where=each.path)
    for kind, name, node in references.missing(case.pod.configuration.dump):
        yield Misfit(P7, case.family, f"{kind} {plain(name)} is named and is not there", where=node.path)


def p8(case: FitCase) -> Iterator[Misfit]:
    """A connection from a loopback address can't leave: every connection of the cluster fails."""
    configuration = case.pod.configuration
    length = 4 if case.family == "ipv4" else 16
    inner = _listener(case, case.pod.envoy.inbound_port)
    for listener in configuration.listeners.all:
        if listener is inner or listener.direction == "INBOUND":
            continue
        for name in references.clusters_of(configuration.dump, listener):
            cluster = clusters.cluster(configuration.dump, name)
            bound = clusters.bind_address(configuration.dump, cluster, length) if cluster else None
            if bound and _is_loopback(bound[0]) and len(bound[0]) == length and _dials_out(case, cluster):
                finding = f"cluster {plain(name)} is bound to {address_text(bound[0])}"
                packet, client = caller_of(case, listener, name)
                path = case.follow(packet, client)[0]
                yield Misfit(P8, case.family, finding, client, path, bound[1].path)


def _dials_out(case: FitCase, cluster: clusters.Cluster | None) -> bool:
    """Whether a cluster has an endpoint outside the pod, or dials the original destination."""
    if cluster is None or not cluster.type:
        return False
    if cluster.restored:
        return True
    every = clusters.endpoints(case.pod.configuration.dump, cluster).every
    return any(each.address and not case.pod.facts.is_local(each.address) for each in every)


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def p9(case: FitCase) -> Iterator[Misfit]:
    """Connections to a port bypass the policy of its filter chain, and no log shows it."""
    inbound_port = case.pod.envoy.inbound_port
    listener = _listener(case, inbound_port)
    if listener is None or next(case.captured("PREROUTING", inbound_port), None) is None:
        return
    own = {port for port, _, _ in _ports(case)}
    ports = {port for chain in chains.chains(listener) for port in chain.criteria[0]} - own
    space, options = case.space, case.options
    for port in sorted(ports):
        # Sources and interfaces that are excluded (-c) bypass Envoy on purpose.
        at = space.cube(
            destination_port=space.only(DESTINATION_PORT, port),
            source=space.everything[SOURCE] & ~space.inside(SOURCE, options.istio_inbound_exclude_cidr),
            in_interface=space.only(IN, case.pod.facts.uplink),
        )
        for each in case.connections_of("PREROUTING"):
            cube = intersection(each.cube, at)
            if cube and not each.redirect and not each.tproxy and each.end == "delivered":
                packet = case.packet(cube, "PREROUTING")
                if why := _policy(case, packet):
                    finding = f"port {port} bypasses Envoy, whose chain for it {why}"
                    yield _misfit(case, P9, finding, packet).replace(where=listener.node.path)
                break


def _policy(case: FitCase, packet: Packet) -> str:
    """How Envoy would restrict a plaintext connection; empty if it would let it pass."""
    envoy = case.pod.envoy
    arrival = ListenerArrival(
        packet.destination, envoy.inbound_port, packet.source, packet.source_port, packet.destination,
        packet.destination_port, uses_tproxy(case.options),
    )  # fmt: skip
    passages = [walk(case.pod.configuration, arrival, CLIENTS[name]) for name in PLAIN]
    accepted = [each for each in passages if each.end.kind == "dials"]
    if not accepted:
        return "takes nothing in clear"
    conditions = [each.conditions[0] for each in accepted if each.conditions]
    return f"has a filter: {conditions[0]}" if conditions else ""


def p10(case: FitCase) -> Iterator[Misfit]:
    """Envoy's own connections are redirected to Envoy, in a loop."""
    envoy, space = case.pod.envoy, case.space
    own_traffic = space.cube(uid=space.only(UID, envoy.uid), gid=space.only(GID, envoy.gid), mark=1 << space.mark(0))
    for each in case.captured("OUTPUT", envoy.outbound_port):
        if cube := intersection(each.cube, own_traffic):
            finding = f"what Envoy sends as uid {envoy.uid}, gid {envoy.gid} is given to its outbound listener"
            yield _misfit(case, P10, finding, case.packet(cube, "OUTPUT"))
            return


def p11(case: FitCase) -> Iterator[Misfit]:
    """Without an inspector, every connection is raw_buffer without a protocol, so the chain never matches."""
    first = _listener(case, case.pod.envoy.outbound_port)
    for listener in case.pod.configuration.listeners.all:
        before = first.filters() if first and first.hands_on and not listener.bound else ()
        for chain in chains.chains(listener):
            port = chain.criteria[0][0] if chain.criteria[0] else _own_port(listener)
            inspectors = {each.name for each in (*before, *listener.filters()) if not each.is_off(port)}
            for inspector in _required_inspectors(chain):
                if inspector not in inspectors:
                    short = inspector.rpartition(".")[2]
                    finding = f"chain {chain.number} of {plain(listener.name)} needs {short} on port {port}"
                    packet = packet_to(case, listener) if not listener.bound else inbound_packet(case, port)
                    client = CLIENTS["tls" if inspector == listeners.TLS_INSPECTOR else "http"]
                    yield _misfit(case, P11, finding, packet, client).replace(where=chain.node.path)


def _own_port(listener: Listener) -> int:
    """The port of a listener's connections: its own if connections are handed off to it, any (0) if it is bound."""
    return 0 if listener.bound else int(listener.sockets[0].port)


def _required_inspectors(chain: chains.FilterChain) -> Iterator[str]:
    """The inspectors that a chain needs to match."""
    named = dict(zip(chains.NAMES, chain.criteria, strict=True))
    transport, protocols = named["transport_protocol"], set(named["application_protocols"])
    if TLS in transport or named["server_names"]:
        yield listeners.TLS_INSPECTOR
    elif protocols and RAW_BUFFER in transport and protocols <= HTTP_ALPN:
        yield listeners.HTTP_INSPECTOR


def p12(case: FitCase) -> Iterator[Misfit]:
    """A call to a service that Envoy knows bypasses Envoy or fails."""
    capturing = case.options.istio_service_cidr or case.options.istio_outbound_ports
    port = case.pod.envoy.outbound_port
    if not capturing or _listener(case, port) is None:
        return
    application = application_cube(case)
    uncaptured = [cube for each in case.connections_of("OUTPUT") if port not in {each.redirect, each.tproxy}
              and (cube := intersection(each.cube, application))]  # fmt: skip
    for address, called, name, where in references.services(case.pod.configuration):
        if len(address) != (4 if case.family == "ipv4" else 16) or case.pod.facts.is_local(address):
            continue
        to = case.space.cube(
            destination=case.space.among(1, (address,)), destination_port=case.space.only(DESTINATION_PORT, called)
        )
        cube = next((both for each in uncaptured if (both := intersection(each, to))), None)
        if cube:
            finding = f"{plain(name)}, {endpoint_text(address, called)}, is not captured (-i, -x, -o)"
            yield _misfit(case, P12, finding, case.packet(cube, "OUTPUT")).replace(where=where)


CHECKS: dict[Claim, Callable[[FitCase], Iterator[Misfit]]] = {
    P1: p1, P2: p2, P3: p3, P4: p4, P5: p5, P6: p6, P7: p7, P8: p8, P9: p9, P10: p10, P11: p11, P12: p12,
}  # fmt: skip
