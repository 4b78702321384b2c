"""Checks whether rules and proxy fit: claims about both, tested with all packets and all kinds of clients.

The packets that the rules redirect to Envoy come from verify's packet sets, further split where the configuration
distinguishes packets. One packet of each class is followed for each kind of client. docs/envoy.md has the claims.
"""

from __future__ import annotations

from istio_init.envoy import chains
from istio_init.envoy.client import CLIENTS
from istio_init.envoy.path import Path, Pod, follow
from istio_init.model.rules import TCP, Network, PortRange
from istio_init.record import Record
from istio_init.verify.header_space import (
    DESTINATION,
    DESTINATION_PORT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    STATE,
    Boundaries,
    Space,
    intersection,
)
from istio_init.verify.packet_set import FIRST_ONE, PacketSet, bits
from istio_init.verify.reachability import Reachability
from istio_init.verify.sources import boundaries, inbound, outbound, usual

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.envoy.client import Client
    from istio_init.envoy.listeners import Listener
    from istio_init.model.packet import Packet
    from istio_init.model.rules import Family, Hook
    from istio_init.options.table import Options
    from istio_init.verify.header_space import Cube

# Ports of the sidecar for other programs: the agent's status, health, Envoy's metrics.
OWN_PORTS = (15020, 15021, 15090)
# The most connections shown for a claim, and the most inbound classes followed.
MOST_SHOWN = 3
MOST_CLASSES = 4000


class Claim(Record):
    """A claim: its name in docs/envoy.md, and its text."""

    name: str
    text: str


class Misfit(Record):
    """A broken claim: what is wrong, and an example connection with its client and path, if there is one."""

    claim: Claim
    family: Family
    actual: str
    client: Client | None = None
    path: Path | None = None
    where: str = ""


class Note(Record):
    """A remark that breaks no claim."""

    name: str
    text: str
    where: str = ""


class Fit(Record):
    """The result: broken claims, notes, all claims, and the number of connections followed."""

    misfits: tuple[Misfit, ...]
    notes: tuple[Note, ...]
    claims: tuple[Claim, ...]
    connections: int

    @property
    def holds(self) -> bool:
        """Whether no claim is broken."""
        return not self.misfits


class FitCase:
    """The rules of one family and the proxy, with all packets in the classes that either distinguishes."""

    def __init__(self, pod: Pod, options: Options, others: tuple[Listener, ...]) -> None:
        self.pod, self.options = pod, options
        self.family: Family = pod.ruleset.family
        self._length = 4 if self.family == "ipv4" else 16
        points = boundaries(options, pod.facts, pod.envoy)
        self.space = Space(self.family, (pod.ruleset,), self._cut(points, others))
        reach = Reachability(self.space, pod.ruleset, pod.facts)
        self._sets: dict[Hook, list[PacketSet]] = {
            "OUTPUT": reach.travel("OUTPUT", outbound(self.space, pod.facts)),
            "PREROUTING": reach.travel("PREROUTING", inbound(self.space, pod.facts)),
        }
        self.connections = 0

    def _cut(self, points: Boundaries, others: tuple[Listener, ...]) -> Boundaries:
        networks: set[Network] = {*points.networks}
        ports: set[PortRange] = {*points.ports, *(PortRange(port, port) for port in OWN_PORTS)}
        for listener in self.pod.configuration.listeners.all:
            for socket in listener.sockets:
                networks.add(Network(socket.address, len(socket.address) * 8))
                ports.add(PortRange(socket.port, socket.port))
        for chain in (each for listener in others for each in chains.chains(listener)):
            named = dict(zip(chains.NAMES, chain.criteria, strict=True))
            networks.update(
                (*named["prefix_ranges"], *named["direct_source_prefix_ranges"], *named["source_prefix_ranges"])
            )
            ports.update(PortRange(port, port) for port in (*named["destination_port"], *named["source_ports"]))
        return points.replace(networks=tuple(networks), ports=tuple(ports))

    def connections_of(self, hook: Hook) -> Iterator[PacketSet]:
        """The sets of packets that open TCP connections."""
        limits = self.space.cube(protocol=self.space.only(PROTOCOL, TCP), ctstate=self.space.only(STATE, "NEW"))
        for each in self._sets[hook]:
            if each.kind == FIRST_ONE and (cube := intersection(each.cube, limits)):
                yield each.of(cube)

    def captured(self, hook: Hook, port: int) -> Iterator[PacketSet]:
        """The connections that the rules redirect to a port of Envoy."""
        return (each for each in self.connections_of(hook) if port in {each.redirect, each.tproxy})

    def packet(self, cube: Cube, hook: Hook) -> Packet:
        """The most typical packet of a set."""
        return self.space.packet(usual(cube, self.space, self.pod.facts), hook)

    def follow(self, packet: Packet, client: Client) -> tuple[Path, ...]:
        """The paths of a connection."""
        self.connections += 1
        return follow(self.pod, packet, client)

    def arriving(self, port: int) -> Iterator[Packet]:
        """A packet of each class that its listener distinguishes, among those redirected to Envoy's inbound port."""
        listener = self.pod.configuration.listeners.bound(bytes(self._length), port)
        dimensions = [DESTINATION_PORT, *(_distinguishing(listener) if listener else ())]
        classes: set[tuple[int, ...]] = set()
        for each in self.captured("PREROUTING", port):
            for cube in _split(each.cube, dimensions):
                key = tuple(cube[dimension] for dimension in dimensions)
                if key not in classes and len(classes) < MOST_CLASSES:
                    classes.add(key)
                    yield self.packet(cube, "PREROUTING")

    def clients(self, port: int) -> Iterator[Client]:
        """Every kind of client, and TLS clients with each server name and protocol that a port's listener has."""
        yield from CLIENTS.values()
        listener = self.pod.configuration.listeners.bound(bytes(self._length), port)
        criteria = (
            [dict(zip(chains.NAMES, each.criteria, strict=True)) for each in chains.chains(listener)]
            if listener
            else []
        )
        names = dict.fromkeys(name.replace("*", "any", 1) for named in criteria for name in named["server_names"])
        protocols = dict.fromkeys(name for named in criteria for name in named["application_protocols"])
        for sni in ("", *names):
            for alpn in ((), *((name,) for name in protocols)):
                if sni or alpn:
                    yield CLIENTS["mtls"].replace(sni=sni, alpn=alpn)


def _distinguishing(listener: Listener) -> Iterator[int]:
    """The dimensions, apart from the port, by which a listener's chains distinguish connections."""
    criteria = [dict(zip(chains.NAMES, chain.criteria, strict=True)) for chain in chains.chains(listener)]
    for dimension, names in (
        (DESTINATION, ("prefix_ranges",)),
        (SOURCE, ("source_prefix_ranges", "direct_source_prefix_ranges", "source_type")),
        (SOURCE_PORT, ("source_ports",)),
    ):
        if any(named[name] for named in criteria for name in names):
            yield dimension


def _split(cube: Cube, dimensions: list[int]) -> Iterator[Cube]:
    """The cube's parts, each of one class in these dimensions."""
    if not dimensions:
        yield cube
        return
    first, *rest = dimensions
    for number in bits(cube[first]):
        yield from _split((*cube[:first], 1 << number, *cube[first + 1 :]), rest)


def prove(pods: tuple[Pod, ...], options: Options, listening: frozenset[int] | None = None) -> Fit:
    """Check all claims for the rules of each family and the proxy.

    `listening` are the ports of the pod with a listening process, if known.
    """
    from istio_init.envoy.claims import CHECKS, misfits
    from istio_init.envoy.notes import notes

    broken: list[Misfit] = []
    all_notes: list[Note] = []
    connections = 0
    for pod in pods:
        case = FitCase(pod, options, _capturing(pod))
        counts: dict[Claim, int] = {}
        for each in misfits(case):
            counts[each.claim] = counts.get(each.claim, 0) + 1
            broken += [each] if counts[each.claim] <= MOST_SHOWN and not _is_repeated(broken, each) else []
        all_notes += notes(case, listening)
        connections += case.connections
    return Fit(tuple(broken), tuple(dict.fromkeys(all_notes)), tuple(CHECKS), connections)


def _is_repeated(broken: list[Misfit], misfit: Misfit) -> bool:
    """Whether the other family has the same finding without an example connection."""
    return misfit.path is None and any((each.claim, each.actual) == (misfit.claim, misfit.actual) for each in broken)


def _capturing(pod: Pod) -> tuple[Listener, ...]:
    """The listeners that the rules redirect connections to, whose chains divide packets into classes."""
    any_address = bytes(4 if pod.ruleset.family == "ipv4" else 16)
    ports = (pod.envoy.outbound_port, pod.envoy.inbound_port)
    candidates = (pod.configuration.listeners.bound(any_address, port) for port in ports)
    return tuple(each for each in candidates if each)
