"""A connection's whole path: through the rules, Envoy (from a dump), and the rules again, to its end.

A connection that can continue to several endpoints (in the pod and elsewhere) has several paths.
"""

from __future__ import annotations

from istio_init.envoy.passage import ListenerArrival, Passage, Stop
from istio_init.envoy.walk import walk
from istio_init.formats.addresses import address_text
from istio_init.model.packet import Packet, connected
from istio_init.model.rules import TCP
from istio_init.record import Record
from istio_init.simulate.path import APPLICATION, CLIENT, EPHEMERAL_PORT, Leg, routed, travel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.envoy.client import Client
    from istio_init.envoy.passage import Dial
    from istio_init.envoy.walk import Configuration
    from istio_init.model.packet import Facts
    from istio_init.model.rules import Ruleset
    from istio_init.simulate.path import Proxy

ENVOY = "Envoy"
# The ends of a packet's path at which Envoy may listen.
DELIVERED = frozenset({"outbound", "inbound", "tunnel", "application"})
# A connection is followed through at most this many stages.
MOST_STAGES = 24
MOST_PATHS = 16


class Path(Record):
    """Alternating legs through the kernel and passages through Envoy; `loop` is a listener reached twice."""

    stages: tuple[Leg | Passage, ...]
    loop: str = ""

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The kernel's part."""
        return tuple(each for each in self.stages if isinstance(each, Leg))

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Envoy's part."""
        return tuple(each for each in self.stages if isinstance(each, Passage))

    @property
    def end(self) -> str:
        """Where it ends: as a leg does, or as a passage does, or a loop."""
        last = self.stages[-1]
        if self.loop:
            return "loop"
        return last.end if isinstance(last, Leg) else last.end.kind

    @property
    def flag(self) -> str:
        """Envoy's response flag, where it ends in Envoy; else empty."""
        last = self.stages[-1]
        return "" if isinstance(last, Leg) else last.end.flag

    @property
    def conditions(self) -> tuple[str, ...]:
        """Unsupported filters that may change the result."""
        return tuple(dict.fromkeys(why for passage in self.passages for why in passage.conditions))


class Answer(Record):
    """The paths of some kinds of clients that are all treated alike."""

    clients: tuple[Client, ...]
    paths: tuple[Path, ...]


class Pod(Record):
    """A pod: the rules of one family, routing, Envoy's ids and ports, and its configuration."""

    ruleset: Ruleset
    facts: Facts
    envoy: Proxy
    configuration: Configuration


def answers(pod: Pod, packet: Packet, clients: Iterable[Client]) -> tuple[Answer, ...]:
    """Follow a packet that opens a connection; one answer for all clients that are treated alike."""
    by_signature: dict[tuple[object, ...], Answer] = {}
    for client in clients:
        paths = follow(pod, packet, client)
        signature = tuple(_signature(path) for path in paths)
        answer = by_signature.get(signature)
        by_signature[signature] = (
            answer.replace(clients=(*answer.clients, client)) if answer else Answer((client,), paths)
        )
    return tuple(by_signature.values())


def follow(pod: Pod, packet: Packet, client: Client) -> tuple[Path, ...]:
    """All paths of the connection that a packet opens."""
    sender = APPLICATION if packet.hook == "OUTPUT" else CLIENT
    return tuple(_onward(pod, packet, client, sender, ()))


def _onward(
    pod: Pod, packet: Packet, client: Client, sender: str, before: tuple[Leg | Passage | ListenerArrival, ...]
) -> Iterator[Path]:
    leg = travel(pod.ruleset, packet, pod.facts, pod.envoy, sender)
    so_far = (*before, leg)
    arrival = arrival_of(leg, pod.configuration)
    if arrival is None:
        yield Path(_shown(so_far))
        return
    passage = walk(pod.configuration, arrival, client)
    if any(_same(arrival, each) for each in before) or len(so_far) > MOST_STAGES:
        yield Path(_shown(so_far), passage.listener)
        return
    so_far = (*so_far, arrival, passage)
    if not passage.dials:
        yield Path(_shown(so_far))
        return
    for dial in _representatives(passage.dials, pod.facts):
        if why := dial_failure(dial, pod.facts):
            yield Path((*_shown(so_far[:-1]), passage.replace(end=why)))
        else:
            yield from _onward(pod, first_packet(dial, pod), dial.client, ENVOY, so_far)


def _same(arrival: ListenerArrival, other: object) -> bool:
    """Whether the same destination reached the same listener before, from any source."""
    if not isinstance(other, ListenerArrival):
        return False
    return (arrival.port, arrival.original, arrival.original_port) == (other.port, other.original, other.original_port)


def _shown(stages: tuple[Leg | Passage | ListenerArrival, ...]) -> tuple[Leg | Passage, ...]:
    return tuple(each for each in stages if not isinstance(each, ListenerArrival))


def _representatives(dials: tuple[Dial, ...], facts: Facts) -> tuple[Dial, ...]:
    """One local and one remote endpoint for each kind of upstream connection."""
    by_kind: dict[object, Dial] = {}
    for dial in dials:
        by_kind.setdefault((facts.is_local(dial.address), dial.client.speaks, dial.source), dial)
    return tuple(by_kind.values())[:MOST_PATHS]


def arrival_of(leg: Leg, configuration: Configuration) -> ListenerArrival | None:
    """How a leg reached Envoy; None if it reached something else, or opens no TCP connection."""
    packet, start = leg.arrived, leg.packet
    if leg.end not in DELIVERED or start.protocol != TCP or start.ctstate != "NEW":
        return None
    port = packet.tproxy_port or packet.destination_port
    if leg.end == "application" and configuration.listeners.bound(packet.destination, port) is None:
        return None
    return ListenerArrival(
        packet.destination, port, packet.source, packet.source_port, start.destination, start.destination_port,
        bool(packet.tproxy_port),
    )  # fmt: skip


def dial_failure(dial: Dial, facts: Facts) -> Stop | None:
    """Why the kernel refuses Envoy's connection before it sends a packet; None if it does not."""
    source = dial.source
    if source is None:
        return None
    inner = source[0] == 127 if len(source) == 4 else source == bytes(15) + b"\1"
    if len(source) != len(dial.address):
        return _failed(dial, f"{address_text(source)} is of the other family than its destination")
    if inner and not facts.is_local(dial.address):
        return _failed(dial, f"a connection from {address_text(source)} can't leave the pod (EINVAL)")
    if not dial.mark and not facts.is_local(source):
        return _failed(dial, f"{address_text(source)} is no address of the pod (EADDRNOTAVAIL)")
    return None


def _failed(dial: Dial, why: str) -> Stop:
    text = f"Envoy's connection fails: {why}"
    return Stop("answers", f"503: {text}", "UF", 503) if dial.client.is_http else Stop("closes", text, "UF")


def first_packet(dial: Dial, pod: Pod) -> Packet:
    """The first packet of a connection that Envoy makes."""
    destination = connected(dial.address, dial.source)
    packet = Packet(
        "OUTPUT", TCP, dial.source or pod.facts.source(destination), destination, EPHEMERAL_PORT, dial.port,
        uid=pod.envoy.uid, gid=pod.envoy.gid, mark=dial.mark,
    )  # fmt: skip
    return routed(packet, pod.facts).packet


def _signature(path: Path) -> tuple[object, ...]:
    """The properties in which two clients' paths may differ: where they go and end."""
    parts: list[object] = [path.loop]
    for stage in path.stages:
        if isinstance(stage, Leg):
            parts.append((stage.end, stage.packet, stage.arrived))
        else:
            where = [(dial.address, dial.port, dial.source, dial.mark) for dial in stage.dials]
            parts.append((stage.listener, stage.chain, stage.route, stage.cluster, stage.end, tuple(where)))
            parts.append(tuple((step.part, step.path) for step in stage.steps if step.part != "listener filter"))
    return tuple(parts)
