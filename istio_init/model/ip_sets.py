"""IP sets with their members, and whether a packet is in one: what `-m set` asks."""

from __future__ import annotations

from istio_init.model.rules import Network
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from istio_init.model.packet import Packet
    from istio_init.model.rules import Family

# Members of list:set may be lists themselves; the kernel takes no deeper ones.
DEEPEST = 2
# Each address that a set names may double what a proof distinguishes.
MOST_MEMBERS = 200


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

    @property
    def address_side(self) -> str:
        """The side of which the set looks at the address alone; empty where it looks at more, or at something else."""
        members = _flat(self.name, self.sets, 0)
        alone = all(len(each.parts) == 1 and isinstance(each.parts[0], AddressPart) for each in members)
        return self.sides[0] if alone and self.sides else ""


def small(sets: tuple[IpSet, ...]) -> tuple[IpSet, ...]:
    """The sets whose members a proof can tell apart; with all of a larger one it would take too long."""
    return tuple(each for each in sets if len(each.members) <= MOST_MEMBERS)


def networks(sets: tuple[IpSet, ...]) -> set[Network]:
    """The networks of all members that are addresses."""
    parts = {part for each in sets for member in each.members for part in member.parts}
    return {Network(low, prefix) for part in parts if isinstance(part, AddressPart) for low, prefix in _cut(part)}


def _cut(part: AddressPart) -> list[tuple[bytes, int]]:
    """A range of addresses as networks: each the largest that begins where the last one ends."""
    bits = len(part.low) * 8
    low, high = int.from_bytes(part.low), int.from_bytes(part.high)
    result = []
    while low <= high:
        size = bits if not low else (low & -low).bit_length() - 1
        size = min(size, (high - low + 1).bit_length() - 1)
        result.append((low.to_bytes(len(part.low)), bits - size))
        low += 1 << size
    return result


def _named(name: str, sets: tuple[IpSet, ...]) -> IpSet | None:
    return next((each for each in sets if each.name == name), None)


def _flat(name: str, sets: tuple[IpSet, ...], depth: int) -> list[Member]:
    """The members of a set, and in place of sets theirs."""
    result = _named(name, sets)
    if result is None or depth > DEEPEST:
        return [Member((UnknownPart(name),))]
    if result.kind != "list:set":
        return list(result.members)
    inner = [part.name for each in result.members for part in each.parts if isinstance(part, NamedPart)]
    return [member for each in inner for member in _flat(each, sets, depth + 1)]


def _contains(name: str, sets: tuple[IpSet, ...], packet: Packet, sides: tuple[str, ...], depth: int) -> bool | None:
    result = _named(name, sets)
    if result is None or depth > DEEPEST:
        return None
    if len(sides) < result.dimensions or result.family not in {"", packet.family}:
        return False
    if result.kind == "list:set":
        inner = [part.name for each in result.members for part in each.parts if isinstance(part, NamedPart)]
        answers = [_contains(each, sets, packet, sides, depth + 1) for each in inner]
        return True if True in answers else None if None in answers else False
    unknown = False
    # The narrowest member decides.
    for member in sorted(result.members, key=_width, reverse=True):
        answers = [_is_in(part, side, packet) for part, side in zip(member.parts, sides, strict=False)]
        if all(answers):
            return not member.excluded
        unknown = unknown or (None in answers and False not in answers)
    return None if unknown else False


def _width(member: Member) -> int:
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
