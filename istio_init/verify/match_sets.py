"""Rules as cubes: the packets of a space that a rule matches, tested with one packet of each class."""

from __future__ import annotations

from istio_init.model.extensions import ConnMark, CtState, Mark, Multiport
from istio_init.model.foreign import (
    AddressRange,
    AddressType,
    Assumed,
    Direction,
    MaskedAddress,
    TcpFlags,
    Undecidable,
)
from istio_init.model.inet import interval
from istio_init.model.ip_sets import SetMember
from istio_init.model.packet import UNCONNECTED, Packet
from istio_init.model.rules import (
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    OutInterface,
    Owner,
    Protocol,
    Source,
    SourcePorts,
)
from istio_init.model.unknown import Comment, UnknownMatch
from istio_init.simulate.foreign import parts
from istio_init.simulate.semantics import holds
from istio_init.verify.header_space import (
    DESTINATION_PORT,
    DIMENSIONS,
    PROTOCOL,
    SOURCE_PORT,
    STATE,
    common,
    difference,
    intersection,
)
from istio_init.verify.set_cubes import SetCubes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.packet import Facts
    from istio_init.model.rules import Family, Match, Rule
    from istio_init.simulate.foreign import Part
    from istio_init.verify.header_space import Cube, Space
    from istio_init.verify.packet_set import PacketSet

    # Whether a rule matches its packets, may or may not match each of them, or cannot be judged.
    Certainty: TypeAlias = Literal["known", "either", "unknown"]

# The field of a packet that each kind of match tests.
FIELDS = {
    Source: "source",
    Destination: "destination",
    InInterface: "in_interface",
    OutInterface: "out_interface",
    Protocol: "protocol",
    SourcePorts: "source_port",
    DestinationPorts: "destination_port",
    Mark: "mark",
    ConnMark: "connmark",
    CtState: "ctstate",
}


class MatchSets:
    """The cubes of rules in a space, computed once for each rule."""

    def __init__(self, space: Space, facts: Facts) -> None:
        self._space, self._facts = space, facts
        self._cubes_by_rule: dict[int, tuple[Rule, list[tuple[list[Cube], Certainty]]]] = {}
        self._fields: dict[Part, Cube] = {}
        self._sets = SetCubes(space)
        nothing = bytes(4 if space.family == "ipv4" else 16)
        self._probe = Packet("OUTPUT", TCP, nothing, nothing)
        self._probes: dict[str, list[Packet]] = {}

    def of(self, rule: Rule) -> list[tuple[list[Cube], Certainty]]:
        """Disjoint cubes of all packets that a rule may match, by how certain that is."""
        entry = self._cubes_by_rule.get(id(rule))
        if entry is None:
            # Keeping a reference to the rule keeps its id from being reused.
            entry = self._cubes_by_rule[id(rule)] = (rule, self._make(rule))
        return entry[1]

    def _make(self, rule: Rule) -> list[tuple[list[Cube], Certainty]]:
        cubes = [self._space.everything]
        unclear: list[Cube] = []
        certainty: Certainty = "known"
        for match in (each for some in rule.matches for each in self._parts(some)):
            if _is_unknown(match):
                certainty = "unknown"
                continue
            if _is_either(match):
                certainty = "either" if certainty == "known" else certainty
                continue
            if isinstance(match, Assumed):
                cubes, unclear = (cubes, unclear) if match.held else ([], [])
                continue
            if isinstance(match, SetMember):
                inside, maybe = self._sets.of(match)
                unclear = [*common(unclear, [*inside, *maybe]), *common(cubes, maybe)]
                cubes = common(cubes, inside)
                continue
            parts = (
                self._either(match) if isinstance(match, Multiport) and match.side == "ports" else [self._set(match)]
            )
            cubes, unclear = common(cubes, parts), common(unclear, parts)
        return [(cubes, certainty), (unclear, "unknown")] if unclear else [(cubes, certainty)]

    def _parts(self, match: Match) -> tuple[Part, ...]:
        return parts(match, self._facts.ip_sets) if isinstance(match, UnknownMatch) else (match,)

    def _set(self, match: Part) -> Cube:
        """The packets for which a match on one field holds."""
        if match not in self._fields:
            self._fields[match] = self._field_set(match)
        return self._fields[match]

    def _field_set(self, match: Part) -> Cube:
        limits: dict[str, int] = {}
        field = _field(match)
        if not field:
            return self._space.everything
        if field in {"source_port", "destination_port"}:
            limits["protocol"] = self._space.among(PROTOCOL, (TCP, UDP))
        if field == "connmark":
            limits["ctstate"] = self._space.where(STATE, lambda state: state not in UNCONNECTED)
        if (span := _interval(match, self._space.family)) is not None:
            classes = self._space.between(DIMENSIONS.index(field), *span)
            if match.negated:  # type: ignore[union-attr]
                classes = self._space.everything[DIMENSIONS.index(field)] & ~classes
        else:
            probes = enumerate(self._packets_by_class(field))
            classes = sum(1 << number for number, probe in probes if holds(match, probe, self._facts))
        return self._space.cube(**{**limits, field: classes})

    def _packets_by_class(self, field: str) -> list[Packet]:
        """A TCP packet for each class of a field."""
        if field not in self._probes:
            values = self._space.values[DIMENSIONS.index(field)]
            self._probes[field] = [self._probe.replace(**{field: value}) for value in values]
        return self._probes[field]

    def _either(self, match: Multiport) -> list[Cube]:
        """The disjoint cubes of a match of either port, or, negated, of neither."""
        space = self._space
        with_ports = space.among(PROTOCOL, (TCP, UDP))
        source, destination = space.ports(SOURCE_PORT, match.ports), space.ports(DESTINATION_PORT, match.ports)
        if match.negated:
            neither = (space.everything[SOURCE_PORT] & ~source, space.everything[DESTINATION_PORT] & ~destination)
            return [space.cube(protocol=with_ports, source_port=neither[0], destination_port=neither[1])]
        rest = space.everything[SOURCE_PORT] & ~source
        return [
            space.cube(protocol=with_ports, source_port=source),
            space.cube(protocol=with_ports, source_port=rest, destination_port=destination),
        ]

    def split(self, packet_set: PacketSet, cube: Cube) -> tuple[list[PacketSet], list[PacketSet]]:
        """A set's packets that are now in a cube, and those that are not."""
        if packet_set.changed:
            limits = list(cube)
            for dimension, number in packet_set.changed:
                if not cube[dimension] >> number & 1:
                    return [], [packet_set]
                limits[dimension] = self._space.everything[dimension]
            cube = tuple(limits)
        inside = intersection(packet_set.cube, cube)
        if inside is None:
            return [], [packet_set]
        if inside == packet_set.cube:
            return [packet_set], []
        return [packet_set.of(inside)], [packet_set.of(each) for each in difference(packet_set.cube, cube)]


def _field(match: Part) -> str:
    """The field of a packet that a match tests; empty for a comment."""
    match match:
        case Owner(kind):
            return str(kind)
        case AddressType(side) | AddressRange(side):
            return str(side)
        case Multiport(side):
            return "source_port" if side == "sports" else "destination_port"
        case Comment():
            return ""
        case _:
            return FIELDS[type(match)]


def _interval(match: Part, family: Family) -> tuple[int, int] | None:
    """The addresses or ports that a match names, as numbers; None for other matches."""
    match match:
        case Source(network) | Destination(network) if network.family == family:
            return interval(network)
        case SourcePorts(ports) | DestinationPorts(ports):
            return ports.low, ports.high
        case _:
            return None


def _is_unknown(match: Part) -> bool:
    """Whether a match can't be judged by one packet's fields: it is not modelled, or depends on earlier NAT."""
    return isinstance(match, Undecidable | MaskedAddress) or (
        isinstance(match, CtState) and bool({"SNAT", "DNAT"} & {*match.states})
    )


def _is_either(match: Part) -> bool:
    """Whether a match holds for only some packets of a class: by chance, or by a property that classes don't have."""
    return isinstance(match, TcpFlags | Direction) or (isinstance(match, Assumed) and match.either)
