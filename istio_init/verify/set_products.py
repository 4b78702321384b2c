"""IP sets as products: the values that a set treats alike are one class, however many members it has.

A set of addresses has two classes, inside and outside. A set of several fields, such as hash:net,port, has classes for
each field, and regions: classes of each field together, of which all packets are in the set, or none is, or that cannot
be decided (a MAC address, ports of protocols other than TCP and UDP).
"""

from __future__ import annotations

from bisect import bisect_right

from istio_init.model.ip_sets import AddressPart, MarkPart, NamedPart, PortPart, UnknownPart, width
from istio_init.model.rules import TCP, UDP
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from typing import TypeAlias

    from istio_init.model.ip_sets import IpSet, Member, MemberPart

    Members: TypeAlias = frozenset[int]
    # A range's first and last number, what it is, and the number of its member: ranges of one label are not told apart.
    Labelled: TypeAlias = tuple[int, int, Hashable, int]

# The bounds of a proof: members of one set (ipset's own default limit), classes of one field, regions of one set,
# classes of all sets together.
MOST_MEMBERS, MOST_CLASSES, MOST_REGIONS, MOST_TOGETHER = 65536, 512, 512, 4096
# Marks multiply with the masks of rules.
MOST_MARKS = 64
# How many members may be at all boundaries together; nested networks are at many.
MOST_WORK = 4_000_000
PORTED = (TCP, UDP)
KINDS: dict[type, str] = {AddressPart: "address", PortPart: "port", NamedPart: "iface", MarkPart: "mark"}


class _TooLargeError(Exception):
    """The set is beyond a bound."""


class Axis(Record):
    """One field of a set: `dimension` is its place, `kind` address, port, iface or mark; classes are numbered from 0.

    Numbers from `starts[n]` to the next are of class `classes[n]`; a name's class is in `names`. Class 0 has what no
    member names. `covers` has the members that hold for each class.
    """

    dimension: int
    kind: str
    starts: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    covers: tuple[Members, ...] = ()

    def class_of(self, value: bytes | int | str) -> int:
        """The class of a packet's value."""
        if isinstance(value, str):
            return self.names.index(value) + 1 if value in self.names else 0
        number = int.from_bytes(value) if isinstance(value, bytes) else value
        return self.classes[bisect_right(self.starts, number) - 1]

    def ranges(self, highest: int) -> Iterator[tuple[int, int, int]]:
        """The first and last number and the class of all ranges, those of class 0 left out."""
        for start, following, number in zip(self.starts, (*self.starts[1:], highest + 1), self.classes, strict=True):
            if number and start <= highest:
                yield start, min(following - 1, highest), number


class Region(Record):
    """Classes of each axis, as bits; `held` tells whether the set has their packets, None if that is unknown.

    Of packets with one of `protocols`, or, for `others`, with none of these; all without protocols.
    """

    classes: tuple[int, ...]
    held: bool | None
    protocols: tuple[int, ...] = ()
    others: bool = False


class Product(Record):
    """A set's axes and its regions; packets in no region are not in the set."""

    axes: tuple[Axis, ...]
    regions: tuple[Region, ...]


def product(ip_set: IpSet) -> Product | None:
    """A set's product; None for a list of sets, and beyond the bounds."""
    entry = _products.get(id(ip_set))
    if entry is None:
        try:
            shape = None if ip_set.kind == "list:set" else _Maker(ip_set).product()
        except _TooLargeError:
            shape = None
        # Keeping a reference to the set keeps its id from being reused.
        entry = _products[id(ip_set)] = (ip_set, shape)
    return entry[1]


_products: dict[int, tuple[IpSet, Product | None]] = {}


def within_bounds(sets: tuple[IpSet, ...]) -> tuple[IpSet, ...]:
    """The sets that a proof can follow; of too many that differ too much, the smaller ones."""
    lists = [each for each in sets if each.kind == "list:set" and len(each.members) <= MOST_CLASSES]
    plain = sorted((each for each in sets if product(each)), key=lambda each: len(each.members))
    while plain and not _bounded_together(plain):
        plain = plain[: len(plain) // 2]
    kept = {each.name for each in (*lists, *plain)}
    return tuple(each for each in sets if each.name in kept)


def _bounded_together(sets: list[IpSet]) -> bool:
    """Whether the classes of all sets, which divide each other, are not too many."""
    for kind, family in (("address", "ipv4"), ("address", "ipv6"), ("port", "")):
        ranges: list[Labelled] = []
        for each in sets:
            shape = product(each)
            for axis in shape.axes if shape else ():
                if axis.kind == kind and family in {"", each.family}:
                    label = (each.name, axis.dimension)
                    ranges_of_axis = axis.ranges((1 << (32 if family == "ipv4" else 128)) - 1)
                    ranges += [(low, high, (*label, number), 0) for low, high, number in ranges_of_axis]
        try:
            _divided(ranges, MOST_TOGETHER)
        except _TooLargeError:
            return False
    return True


def sweep(ranges: list[Labelled]) -> Iterator[tuple[int, list[Labelled]]]:
    """Each number from which on other ranges hold, ascending from 0, with these ranges."""
    opening = sorted(ranges, key=lambda each: each[0])
    active: list[Labelled] = []
    at = 0
    for start in sorted({0, *(each[0] for each in ranges), *(each[1] + 1 for each in ranges)}):
        active = [each for each in active if each[1] >= start]
        while at < len(opening) and opening[at][0] <= start:
            active.append(opening[at])
            at += 1
        yield start, active


def _divided(ranges: list[Labelled], most: int) -> tuple[list[int], list[int], list[Members]]:
    """The starts and classes of intervals with the same labels, and the members at each class."""
    starts: list[int] = []
    numbers: dict[frozenset[Hashable], int] = {frozenset(): 0}
    classes: list[int] = []
    covers: list[Members] = [frozenset()]
    work = 0
    for start, active in sweep(ranges):
        starts.append(start)
        labels = frozenset(each[2] for each in active)
        if labels not in numbers:
            numbers[labels] = len(covers)
            covers.append(frozenset(each[3] for each in active))
        classes.append(numbers[labels])
        work += len(active)
        if len(covers) > most or work > MOST_WORK:
            raise _TooLargeError
    return starts, classes, covers


class _Maker:
    """Makes one set's product."""

    def __init__(self, ip_set: IpSet) -> None:
        self._members = ip_set.members
        self._dimensions = ip_set.dimensions
        if len(self._members) > MOST_MEMBERS:
            raise _TooLargeError
        # Without exceptions any member decides, with them the narrowest.
        self._excepts = any(each.excluded for each in self._members)
        self._ports = next((n for n in range(self._dimensions) if PortPart in self._types(n)), -1)

    def product(self) -> Product:
        axes = tuple(filter(None, map(self._axis, range(self._dimensions))))
        every = frozenset(range(len(self._members)))
        regions: list[Region] = []
        if self._ports < 0:
            regions += self._regions(axes, every, unknown=False)
        else:
            ported = [_port(each, self._ports).protocol for each in self._members]
            named = tuple(sorted({*PORTED, *(protocol for protocol in ported if protocol is not None)}))
            for protocol in named:
                regions_of_protocol = self._regions(axes, self._of_protocol(protocol), unknown=protocol not in PORTED)
                regions += [each.replace(protocols=(protocol,)) for each in regions_of_protocol]
            regions_of_protocol = self._regions(axes, self._of_protocol(None), unknown=True)
            regions += [each.replace(protocols=named, others=True) for each in regions_of_protocol]
        if len(regions) > MOST_REGIONS:
            raise _TooLargeError
        return Product(axes, tuple(regions))

    def _types(self, dimension: int) -> set[type]:
        return {type(each.parts[dimension]) for each in self._members if dimension < len(each.parts)}

    def _of_protocol(self, protocol: int | None) -> Members:
        """The members for packets of a protocol; None stands for those that no member names."""
        accepting = {None, protocol}
        return frozenset(n for n, each in enumerate(self._members) if _port(each, self._ports).protocol in accepting)

    def _axis(self, dimension: int) -> Axis | None:
        """The classes of one field; None for one that no simulated packet has."""
        types = self._types(dimension) - {UnknownPart}
        if len(types) != 1:
            return None
        kind = KINDS[types.pop()]
        if kind == "iface":
            return self._names(dimension)
        highest = {"port": 65535, "mark": 0xFFFFFFFF}.get(kind, (1 << 128) - 1)
        ranges = [self._range(n, dimension, highest) for n in range(len(self._members))]
        starts, classes, covers = _divided(ranges, MOST_MARKS if kind == "mark" else MOST_CLASSES)
        return Axis(dimension, kind, tuple(starts), tuple(classes), (), tuple(covers))

    def _range(self, number: int, dimension: int, highest: int) -> Labelled:
        member = self._members[number]
        part = _part(member, dimension)
        rest: tuple[Hashable, ...] = tuple(each for n, each in enumerate(member.parts) if n != dimension)
        if self._excepts:
            rest = (*rest, member.excluded, width(member))
        match part:
            case AddressPart(low, high):
                return int.from_bytes(low), int.from_bytes(high), rest, number
            case PortPart(protocol, low, high):
                return low, high, (*rest, protocol), number
            case MarkPart(mark):
                return mark, mark, rest, number
            case _:
                return 0, highest, (*rest, part), number

    def _names(self, dimension: int) -> Axis:
        parts = [_part(each, dimension) for each in self._members]
        names = tuple(dict.fromkeys(part.name for part in parts if isinstance(part, NamedPart)))
        if len(names) > MOST_CLASSES:
            raise _TooLargeError
        anywhere = frozenset(n for n, part in enumerate(parts) if not isinstance(part, NamedPart))
        held = [
            anywhere | {n for n, part in enumerate(parts) if isinstance(part, NamedPart) and part.name == name}
            for name in names
        ]
        return Axis(dimension, "iface", names=names, covers=(anywhere, *held))

    def _regions(self, axes: tuple[Axis, ...], members: Members, *, unknown: bool) -> Iterator[Region]:
        """The regions of some members; `unknown` for protocols without ports, whose ports do not count."""
        count = 0
        for classes, those in _walk(axes, members, without_ports=unknown):
            held = None if unknown else self._held(those)
            if held is not False:
                count += 1
                if count > MOST_REGIONS:
                    raise _TooLargeError
                yield Region(classes, held)

    def _held(self, members: Members) -> bool | None:
        """Whether packets for which exactly these members hold are in the set: the narrowest member decides."""
        undecided = False
        for number in sorted(members, key=lambda n: (-width(self._members[n]), n)) if self._excepts else members:
            member = self._members[number]
            if not any(isinstance(part, UnknownPart) for part in member.parts):
                return not member.excluded
            undecided = True
        return None if undecided else False


def _part(member: Member, dimension: int) -> MemberPart:
    return member.parts[dimension] if dimension < len(member.parts) else UnknownPart("")


def _port(member: Member, dimension: int) -> PortPart:
    part = _part(member, dimension)
    return part if isinstance(part, PortPart) else PortPart(None, 0, 65535)


def _walk(
    axes: tuple[Axis, ...], members: Members, *, without_ports: bool
) -> Iterator[tuple[tuple[int, ...], Members]]:
    """Classes of all axes, as bits, with the members that hold for them."""
    if not members:
        return
    if not axes:
        yield (), members
        return
    first, *rest = axes
    if first.kind == "port" and without_ports:
        by_members = {members: (1 << len(first.covers)) - 1}
    else:
        by_members = {}
        for number, covered in enumerate(first.covers):
            common = members & covered
            by_members[common] = by_members.get(common, 0) | 1 << number
    for common, classes in by_members.items():
        for following, those in _walk(tuple(rest), common, without_ports=without_ports):
            yield (classes, *following), those
