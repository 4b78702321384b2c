"""IP sets with their members, and whether a packet is in one: what `-m set` asks."""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from istio_init.model.packet import Packet
    from istio_init.model.rules import Family

# Members of list:set may be lists themselves; the kernel takes no deeper ones.
DEEPEST = 2


class AddressPart(Record):
    """Addresses from `low` to `high`, both included; of members, the one with the longest `prefix` decides."""

    low: bytes
    high: bytes
    prefix: int


class PortPart(Record):
    """Ports from `low` to `high` of a protocol; `protocol` is None where the set has ports alone."""

    protocol: int | None
    low: int
    high: int


class NamedPart(Record):
    """An interface (`kind` iface), or another set (set)."""

    kind: str
    name: str


class MarkPart(Record):
    """A packet's mark."""

    mark: int


class UnknownPart(Record):
    """What a simulated packet does not have, such as a MAC address."""

    text: str


if TYPE_CHECKING:
    MemberPart: TypeAlias = AddressPart | PortPart | NamedPart | MarkPart | UnknownPart


class Member(Record):
    """One member; with `excluded` (nomatch) an exception from the wider ones."""

    parts: tuple[MemberPart, ...]
    excluded: bool = False


class IpSet(Record):
    """An IP set: `kind` is its type, such as hash:net,port; `family` is empty for sets without addresses."""

    name: str
    kind: str
    family: Family | str
    members: tuple[Member, ...]

    @property
    def dimensions(self) -> int:
        """How many properties of a packet it looks at."""
        return self.kind.count(",") + 1


class SetMember(Record):
    """-m set: whether the packet is in a set of these, its `sides` (src or dst) by dimension."""

    name: str
    sides: tuple[str, ...]
    sets: tuple[IpSet, ...]
    negated: bool = False

    def holds(self, packet: Packet) -> bool | None:
        """Whether the match holds; None where that depends on what a simulated packet does not have."""
        result = _contains(self.name, self.sets, packet, self.sides, 0)
        return None if result is None else result != self.negated


def _named(name: str, sets: tuple[IpSet, ...]) -> IpSet | None:
    return next((each for each in sets if each.name == name), None)


def plain_sets(name: str, sets: tuple[IpSet, ...], depth: int = 0) -> list[IpSet | None]:
    """The set of this name, or those that it lists; None in place of each that is not known."""
    result = _named(name, sets)
    if result is None or depth > DEEPEST:
        return [None]
    if result.kind != "list:set":
        return [result]
    return [each for inner in _listed(result) for each in plain_sets(inner, sets, depth + 1)]


def _listed(ip_set: IpSet) -> list[str]:
    return [part.name for each in ip_set.members for part in each.parts if isinstance(part, NamedPart)]


def _contains(name: str, sets: tuple[IpSet, ...], packet: Packet, sides: tuple[str, ...], depth: int) -> bool | None:
    result = _named(name, sets)
    if result is None or depth > DEEPEST:
        return None
    if len(sides) < result.dimensions or result.family not in {"", packet.family}:
        return False
    if result.kind == "list:set":
        answers = [_contains(each, sets, packet, sides, depth + 1) for each in _listed(result)]
        return True if True in answers else None if None in answers else False
    unknown = False
    # The narrowest member decides.
    for member in sorted(result.members, key=width, reverse=True):
        answers = [_is_in(part, side, packet) for part, side in zip(member.parts, sides, strict=False)]
        if all(answers):
            return not member.excluded
        unknown = unknown or (None in answers and False not in answers)
    return None if unknown else False


def width(member: Member) -> int:
    """How many bits of a packet's addresses a member names; of several members the narrowest decides."""
    return sum(part.prefix for part in member.parts if isinstance(part, AddressPart))


def _is_in(part: MemberPart, side: str, packet: Packet) -> bool | None:
    source = side == "src"
    match part:
        case AddressPart(low, high):
            address = packet.source if source else packet.destination
            return len(address) == len(low) and low <= address <= high
        case PortPart(protocol, low, high):
            if packet.protocol not in {6, 17}:
                # Of other protocols a packet here has no ports.
                return None if protocol in {None, packet.protocol} else False
            port = packet.source_port if source else packet.destination_port
            return protocol in {None, packet.protocol} and low <= port <= high
        case NamedPart(kind, name) if kind == "iface":
            interface = packet.in_interface if source else packet.out_interface
            return interface == name
        case MarkPart(mark):
            return packet.mark == mark
        case _:
            return None
