"""All packets at once: the packet space, cut into classes along the boundaries that rules and options draw.

Two packets of one class are the same to every match of the rules that the space was made for. A Cube is a set of
packets: for each dimension a set of classes, as the bits of an int. Rules are cubes, too, so what a rule takes out
of a set of packets is again cubes. This is the header space idea (Kazemian et al., NSDI 2012), over classes
instead of bits.
"""

from __future__ import annotations

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
from istio_init.model.foreign import AddressRange, AddressType, SetConnMark, Translate
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
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.record import Record
from istio_init.simulate.foreign import effect_of, parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeAlias

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.rules import Family, Hook, Ruleset

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
ALL_BITS = 0xFFFFFFFF
HIGHEST_ID = 2**32 - 2
# The preferred representatives of classes, because people read the packets. RFC 5737 and RFC 3849 have addresses.
USUAL_PORT, USUAL_ID = 8080, 1000
USUAL_ADDRESSES = (bytes((198, 51, 100, 7)), bytes.fromhex("20010db80001") + bytes(9) + b"\7")
# A mark's bits fall into groups that masks never split; of so many combinations a space is made at most.
MOST_MARKS = 4096


class Boundaries(Record):
    """What a space must tell apart beside what its rules name."""

    networks: tuple[Network, ...] = ()
    ports: tuple[PortRange, ...] = ()
    interfaces: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()


class Space:
    """The classes of each dimension, and a packet of each."""

    def __init__(self, family: Family, rulesets: Iterable[Ruleset], boundaries: Boundaries) -> None:
        self.family = family
        found = _BoundaryCollector(boundaries)
        for ruleset in rulesets:
            found.take(ruleset)
        self.networks = tuple(network for network in found.networks if network.family == family)
        addresses = _address_classes(self.networks, 4 if family == "ipv4" else 16)
        ports = _interval_classes([(each.low, each.high) for each in found.ports], 65535, (USUAL_PORT,))
        marks, self._mark_groups = _mark_classes(found.marks)
        self.values: tuple[tuple[Any, ...], ...] = (
            addresses, addresses, tuple(sorted(found.protocols)), ports, ports, *(_interfaces(found.interfaces),) * 2,
            (None, *_interval_classes(sorted(found.uids), HIGHEST_ID, (USUAL_ID,))),
            (None, *_interval_classes(sorted(found.gids), HIGHEST_ID, (USUAL_ID,))),
            marks, marks, STATES,
        )  # fmt: skip
        self.everything: Cube = tuple((1 << len(values)) - 1 for values in self.values)
        self._numbers = [{value: number for number, value in enumerate(values)} for values in self.values]

    def number(self, dimension: int, value: object) -> int:
        """The number of the class that a value represents."""
        return self._numbers[dimension][value]

    def where(self, dimension: int, test: Callable[[Any], bool]) -> int:
        """The classes of a dimension whose value passes a test."""
        return sum(1 << number for number, value in enumerate(self.values[dimension]) if test(value))

    def only(self, dimension: int, value: object) -> int:
        """The class of a value that is a class of its own or represents one."""
        return 1 << self._numbers[dimension][value]

    def inside(self, dimension: int, networks: Iterable[Network]) -> int:
        """The classes of addresses in any of the networks."""
        mine = [network for network in networks if network.family == self.family]
        return self.where(dimension, lambda address: any(contains(network, address) for network in mine))

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
        for group, known, other in self._mark_groups:
            part = value & group
            rounded |= part if part in known else other
        return self._numbers[MARK][rounded]

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
    """The packets of both; None where there are none."""
    both = tuple(map(and_, one, other))
    return both if all(both) else None


def difference(cube: Cube, taken: Cube) -> Iterator[Cube]:
    """The packets of the first that are not in the second, as disjoint cubes."""
    left = list(cube)
    for dimension, (mine, others) in enumerate(zip(cube, taken, strict=True)):
        if not mine & others:
            yield tuple(left)
            return
        if rest := mine & ~others:
            yield (*left[:dimension], rest, *left[dimension + 1 :])
        left[dimension] = mine & others


class _BoundaryCollector:
    """What rules name, by dimension."""

    def __init__(self, boundaries: Boundaries) -> None:
        self.networks, self.ports = set(boundaries.networks), {*boundaries.ports, PortRange(0, 0)}
        self.interfaces = {LOOPBACK_INTERFACE, *boundaries.interfaces}
        self.uids = {(each, each) for each in boundaries.uids}
        self.gids = {(each, each) for each in boundaries.gids}
        self.marks: set[tuple[int, int]] = {(mark, ALL_BITS) for mark in (0, *boundaries.marks)}
        self.protocols = {1, TCP, UDP, 58}

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
            case Translate(_, address, port):
                self.ports.update({PortRange(port, port)} if port else ())
                self.networks.update({Network(address, len(address) * 8)} if address else ())
            case _:
                pass


def _interval_classes(ranges: list[tuple[int, int]], highest: int, usual: tuple[int, ...]) -> tuple[int, ...]:
    """A number for each set of numbers that the same ranges hold; a usual one where there is one."""
    starts = sorted({0, *(low for low, _ in ranges), *(high + 1 for _, high in ranges if high < highest)})
    opening = sorted(ranges)
    classes: dict[frozenset[tuple[int, int]], int] = {}
    active: list[tuple[int, int]] = []
    at = 0
    for start, following in zip(starts, [*starts[1:], highest + 1], strict=True):
        active = [each for each in active if each[1] >= start]
        while at < len(opening) and opening[at][0] <= start:
            active.append(opening[at])
            at += 1
        mine = next((number for number in usual if start <= number < following), None)
        if mine is not None:
            classes[frozenset(active)] = mine
        else:
            classes.setdefault(frozenset(active), start)
    return tuple(classes.values())


def _address_classes(networks: Iterable[Network], length: int) -> tuple[bytes, ...]:
    """An address for each set of addresses that the same networks hold."""
    ranges = []
    for network in networks:
        low = int.from_bytes(network.address)
        host = length * 8 - network.prefix
        low = low >> host << host
        ranges.append((low, low + (1 << host) - 1))
    usual = tuple(int.from_bytes(address) for address in USUAL_ADDRESSES if len(address) == length)
    return tuple(each.to_bytes(length) for each in _interval_classes(ranges, (1 << length * 8) - 1, usual))


def _interfaces(names: set[str]) -> tuple[str, ...]:
    """The names, one more for each prefix that some of them are, and none: what no interface is called."""
    plain = {name for name in names if not name.endswith("+")}
    plain |= {f"{name[:-1]}~"[:15] for name in names if name.endswith("+") and name != "+"}
    return ("", "other~", *sorted(plain))


def _mark_classes(marks: set[tuple[int, int]]) -> tuple[tuple[int, ...], list[tuple[int, set[int], int]]]:
    """A mark for each combination that masks can tell apart; and the groups of bits that they are made of.

    A group is its bits, the values that are named, and one that represents all others.
    """
    groups = [ALL_BITS]
    for _, mask in marks:
        groups = [part for group in groups for part in (group & mask, group & ~mask) if part]
    described = []
    combined = {0}
    for group in groups:
        known = {value & group for value, _ in marks}
        other = next((part for part in _subsets(group) if part not in known), min(known))
        described.append((group, known, other))
        combined = {base | part for base in combined for part in {*known, other}}
        if len(combined) > MOST_MARKS:
            raise ValueError(f"marks differ in more than {MOST_MARKS} combinations")
    return tuple(sorted(combined)), described


def _subsets(group: int) -> Iterator[int]:
    """Some values within a group of bits: its single bits, all of it, and, as long as it has bits, combinations."""
    subset = group
    while subset:
        yield subset
        subset = (subset - 1) & group
