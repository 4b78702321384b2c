"""The packet space, divided into classes along the boundaries of rules and options.

No match of the rules that the space is made for distinguishes two packets of one class. A Cube is a set of packets:
for each dimension a set of classes, as the bits of an int. Rules are cubes, too, so the packets that a rule matches
are again cubes. This is header space analysis (Kazemian et al., NSDI 2012), over classes instead of bits.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import and_

from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.foreign import AddressRange, AddressType, MapAddress, MapPrefix, SetConnMark, ToSelf, Translate
from istio_init.model.inet import networks
from istio_init.model.packet import Packet, contains
from istio_init.model.rules import (
    IPV4,
    IPV6,
    LOOPBACK_INTERFACE,
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Source,
    SourcePorts,
)
from istio_init.model.unclear import OpenNumber
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.record import Record
from istio_init.simulate.foreign import parts
from istio_init.simulate.foreign_targets import effect_of
from istio_init.verify.set_products import product
from istio_init.verify.value_classes import (
    ALL_BITS,
    USUAL_ID,
    USUAL_PORT,
    address_classes,
    interface_classes,
    interval_classes,
    mark_classes,
    set_ranges,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeAlias

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.ip_sets import IpSet
    from istio_init.model.rules import Family, Hook, Ruleset
    from istio_init.verify.value_classes import ValueRange

    Cube: TypeAlias = tuple[int, ...]

MULTICAST = (Network(b"\xe0\0\0\0", 4), Network(b"\xff" + bytes(15), 8))
BROADCAST = (Network(b"\xff" * 4, 32),)
# The dimensions, by the packet's fields.
DIMENSIONS = (
    "source", "destination", "protocol", "source_port", "destination_port", "in_interface", "out_interface", "uid",
    "gid", "mark", "connmark", "ctstate",
)  # fmt: skip
(SOURCE, DESTINATION, PROTOCOL, SOURCE_PORT, DESTINATION_PORT, IN, OUT, UID, GID, MARK, CONNMARK, STATE) = range(12)

STATES = tuple(state for state in CT_STATES if state not in {"SNAT", "DNAT"})
HIGHEST_ID = 2**32 - 2
# Ranges of so many marks are looked at one by one.
MOST_LISTED = 4096


class Boundaries(Record):
    """The values that a space must distinguish in addition to those in its rules."""

    networks: tuple[Network, ...] = ()
    ports: tuple[PortRange, ...] = ()
    interfaces: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()
    masked_marks: tuple[tuple[int, int], ...] = ()
    ip_sets: tuple[IpSet, ...] = ()


class Space:
    """The classes of each dimension, with a representative of each."""

    def __init__(self, family: Family, rulesets: Iterable[Ruleset], boundaries: Boundaries) -> None:
        self.family = family
        values = _BoundaryCollector(boundaries)
        for ruleset in rulesets:
            values.take(ruleset)
        self.networks = tuple(network for network in values.networks if network.family == family)
        own = [each for each in boundaries.ip_sets if each.family in {"", family}]
        self.products = {each.name: shape for each in own if (shape := product(each))}
        bits = 32 if family == "ipv4" else 128
        addresses = address_classes(self.networks, bits // 8, set_ranges(own, "address", (1 << bits) - 1))
        port_ranges: list[ValueRange] = [(each.low, each.high, (each.low, each.high)) for each in values.ports]
        ports = interval_classes([*port_ranges, *set_ranges(own, "port", 65535)], 65535, (USUAL_PORT,))
        marks, self._mark_groups = mark_classes(values.marks)
        self.values: tuple[tuple[Any, ...], ...] = (
            addresses, addresses, tuple(sorted(values.protocols)), ports, ports,
            *(interface_classes(values.interfaces),) * 2,
            (None, *interval_classes([(*each, each) for each in values.uids], HIGHEST_ID, (USUAL_ID,))),
            (None, *interval_classes([(*each, each) for each in values.gids], HIGHEST_ID, (USUAL_ID,))),
            marks, marks, STATES,
        )  # fmt: skip
        self.everything: Cube = tuple((1 << len(values)) - 1 for values in self.values)
        self._ordered: dict[int, list[tuple[int, int]]] = {}
        self._numbers = [{value: number for number, value in enumerate(values)} for values in self.values]

    def number(self, dimension: int, value: object) -> int:
        """The number of the class that a value represents."""
        return self._numbers[dimension][value]

    def where(self, dimension: int, test: Callable[[Any], bool]) -> int:
        """The classes of a dimension whose value passes a test."""
        return sum(1 << number for number, value in enumerate(self.values[dimension]) if test(value))

    def only(self, dimension: int, value: object) -> int:
        """The class of a value that represents it."""
        return 1 << self._numbers[dimension][value]

    def inside(self, dimension: int, networks: Iterable[Network]) -> int:
        """The classes of addresses in any of the networks."""
        own_family = [network for network in networks if network.family == self.family]
        return self.where(dimension, lambda address: any(contains(network, address) for network in own_family))

    def between(self, dimension: int, low: int, high: int) -> int:
        """The classes whose value, as a number, is from `low` to `high`: of addresses, or of ports."""
        if dimension not in self._ordered:
            values = ((int.from_bytes(each) if isinstance(each, bytes) else each) for each in self.values[dimension])
            self._ordered[dimension] = sorted((value, number) for number, value in enumerate(values))
        ordered = self._ordered[dimension]
        within = ordered[bisect_left(ordered, (low, 0)) : bisect_left(ordered, (high + 1, 0))]
        return sum(1 << number for _, number in within)

    def unnamed(self, dimension: int) -> int:
        """The classes of addresses that no network and no IP set names."""
        axes = [axis for shape in self.products.values() for axis in shape.axes if axis.kind == "address"]
        return self.where(
            dimension,
            lambda address: (
                not any(contains(network, address) for network in self.networks)
                and not any(axis.class_of(address) for axis in axes)
            ),
        )

    def ports(self, dimension: int, ranges: Iterable[PortRange]) -> int:
        """The classes of ports in any of the ranges."""
        every = tuple(ranges)
        return self.where(dimension, lambda port: any(each.low <= port <= each.high for each in every))

    def among(self, dimension: int, values: Iterable[object]) -> int:
        """The classes of these values."""
        every = set(values)
        return self.where(dimension, lambda value: value in every)

    def mark(self, value: int) -> int:
        """The class of a mark, as a number."""
        rounded = 0
        for group, values, other in self._mark_groups:
            part = value & group
            rounded |= part if part in values else other
        return self._numbers[MARK][rounded]

    def marks(self, low: int, high: int) -> Iterator[int]:
        """The classes of the marks in a range, as numbers; of a long range also some that have none in it."""
        if high - low < MOST_LISTED:
            yield from sorted({self.mark(value) for value in range(low, high + 1)})
            return
        numbers = OpenNumber("mark", low, high, "")
        for number, value in enumerate(self.values[MARK]):
            mask = sum(group for group, values, _ in self._mark_groups if value & group in values)
            if numbers.can_be(value & mask, mask):
                yield number

    def cube(self, **sets: int) -> Cube:
        """The packets whose fields, by name, are in these sets of classes."""
        return tuple(sets.get(name, every) for name, every in zip(DIMENSIONS, self.everything, strict=True))

    def packet(self, cube: Cube, hook: Hook) -> Packet:
        """A packet of a cube that is not empty."""
        fields: dict[str, Any] = {
            name: values[(each & -each).bit_length() - 1]
            for name, values, each in zip(DIMENSIONS, self.values, cube, strict=True)
        }
        return Packet(hook=hook, **fields)


def intersection(one: Cube, other: Cube) -> Cube | None:
    """The packets in both cubes; None if there are none."""
    both = tuple(map(and_, one, other))
    return both if all(both) else None


def common(some: list[Cube], others: list[Cube]) -> list[Cube]:
    """The packets in both lists of disjoint cubes."""
    return [both for one in some for other in others if (both := intersection(one, other))]


def without(cubes: list[Cube], taken: list[Cube]) -> list[Cube]:
    """The packets in the first list of disjoint cubes and not in the second."""
    for other in taken:
        cubes = [part for each in cubes for part in (difference(each, other) if intersection(each, other) else (each,))]
    return cubes


def difference(cube: Cube, taken: Cube) -> Iterator[Cube]:
    """The packets of the first that are not in the second, as disjoint cubes."""
    remaining = list(cube)
    for dimension, (own, other) in enumerate(zip(cube, taken, strict=True)):
        if not own & other:
            yield tuple(remaining)
            return
        if rest := own & ~other:
            yield (*remaining[:dimension], rest, *remaining[dimension + 1 :])
        remaining[dimension] = own & other


class _BoundaryCollector:
    """Collects the values in rules, by dimension."""

    def __init__(self, boundaries: Boundaries) -> None:
        self.networks, self.ports = set(boundaries.networks), {*boundaries.ports, PortRange(0, 0)}
        self.interfaces = {LOOPBACK_INTERFACE, *boundaries.interfaces}
        self.uids = {(each, each) for each in boundaries.uids}
        self.gids = {(each, each) for each in boundaries.gids}
        self.marks: set[tuple[int, int]] = {(mark, ALL_BITS) for mark in (0, *boundaries.marks)}
        self.marks.update(boundaries.masked_marks)
        self.protocols = {1, TCP, UDP, 58}
        for shape in filter(None, map(product, boundaries.ip_sets)):
            self.protocols.update(protocol for region in shape.regions for protocol in region.protocols)
            for axis in shape.axes:
                if axis.kind == "iface":
                    self.interfaces.update(axis.names)
                elif axis.kind == "mark":
                    self.marks.update((mark, ALL_BITS) for mark, _, _ in axis.ranges(ALL_BITS))

    def take(self, ruleset: Ruleset) -> None:
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    for match in rule.matches:
                        self._match(match)
                    self._target(rule.target)

    def _match(self, match: object) -> None:
        match match:
            case Source(network) | Destination(network):
                self.networks.add(network)
            case SourcePorts(ports) | DestinationPorts(ports):
                self.ports.add(ports)
            case Multiport(_, ranges):
                self.ports.update(ranges)
            case InInterface(name) | OutInterface(name):
                self.interfaces.add(name)
            case Owner(kind, low, high):
                (self.uids if kind == "uid" else self.gids).add((low, high))
            case Mark(value, mask) | ConnMark(value, mask):
                self.marks.add((value, mask))
            case Protocol(number) if number:
                self.protocols.add(number)
            case UnknownMatch():
                for part in parts(match):
                    self._match(part)
            case AddressType(_, types):
                self.networks.update(MULTICAST if "MULTICAST" in types else ())
                self.networks.update(BROADCAST if "BROADCAST" in types else ())
            case AddressRange(_, low, high):
                family: Family = IPV4 if len(low) == 4 else IPV6
                self.networks.update(networks((int.from_bytes(low), int.from_bytes(high)), family))
            case CtState() | _:
                pass

    def _target(self, target: object) -> None:
        match target:
            case SetMark(value, mask):
                self.marks.add((value, mask))
            case Tproxy(port, _, value, mask):
                self.ports.add(PortRange(port, port))
                self.marks.add((value, mask))
            case Redirect(ports):
                self.ports.add(ports)
            case SaveMark(one, other) | RestoreMark(one, other):
                self.marks.update({(0, one), (0, other)})
            case UnknownTarget():
                self._effect(effect_of(target))
            case _:
                pass

    def _effect(self, effect: ForeignTarget) -> None:
        match effect:
            case SetConnMark(value, mask):
                self.marks.add((value, mask))
            case Translate(_, address, port, _, last_address, last_port):
                self.ports.update({PortRange(port, last_port)} if port else ())
                if address:
                    ends = int.from_bytes(address), int.from_bytes(last_address or address)
                    self.networks.update(networks(ends, IPV4 if len(address) == 4 else IPV6))
            case ToSelf(port, last_port):
                self.ports.update({PortRange(port, last_port)} if port else ())
            case MapAddress(network) | MapPrefix(_, network):
                self.networks.add(network)
            case _:
                pass
