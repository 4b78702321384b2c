"""What rules do with numbers that no rule determined: matches are decided where each number gives the same answer."""

from __future__ import annotations

from istio_init.model.extensions import ConnMark, Mark, Multiport
from istio_init.model.foreign import AddressRange, AddressType, MaskedAddress
from istio_init.model.inet import interval
from istio_init.model.ip_sets import SetMember
from istio_init.model.rules import Destination, DestinationPorts, PortRange, Source, SourcePorts
from istio_init.model.unclear import ALL_BITS, OpenNumber, either

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from istio_init.model.packet import Facts, Packet
    from istio_init.simulate.foreign import Part

MARKS = ("mark", "connmark")
NUMBERS = (*MARKS, "source", "destination", "source_port", "destination_port")
SIDES = {"src": "source", "dst": "destination"}
PORTS = {"sports": ("source_port",), "dports": ("destination_port",), "ports": ("source_port", "destination_port")}


def set_field(name: str) -> str:
    """The field under which it is noted that an IP set's members are no longer known."""
    return f"IP set {name}"


def unclear(packet: Packet, field: str) -> OpenNumber | None:
    """What a field may be; None if its value is known."""
    return next((each for each in packet.unclear if each.field == field), None)


def current(packet: Packet, field: str) -> OpenNumber | int:
    """A field's number, or what it may be."""
    value = getattr(packet, field)
    return unclear(packet, field) or (int.from_bytes(value) if isinstance(value, bytes) else value)


def with_values(packet: Packet, *values: tuple[str, OpenNumber | int | bytes]) -> Packet:
    """The packet with other values of some fields; of an unclear one it has the lowest."""
    names = {field for field, _ in values}
    kept = tuple(each for each in packet.unclear if each.field not in names)
    fields: dict[str, object] = {}
    for field, value in values:
        number = value.low if isinstance(value, OpenNumber) else value
        size = len(packet.destination) if field in SIDES.values() else 0
        fields[field] = number.to_bytes(size) if size and isinstance(number, int) else number
    unclear_now = tuple(value for _, value in values if isinstance(value, OpenNumber))
    return packet.replace(**fields, unclear=(*kept, *unclear_now))


def marked(packet: Packet, field: str, value: int, mask: int) -> Packet:
    """The packet with a mark of (mark & ~mask) ^ value."""
    now = current(packet, field)
    new = now.written(value, mask) if isinstance(now, OpenNumber) else (now & ~mask) ^ value
    return with_values(packet, (field, new))


def copied(packet: Packet, source: str, taken: int, target: str, cleared: int) -> Packet:
    """The packet with one mark's bits in the other: target = (target & ~cleared) ^ (source & taken)."""
    now, other = current(packet, target), current(packet, source)
    if not isinstance(other, OpenNumber):
        return marked(packet, target, other & taken, cleared)
    if taken == cleared == ALL_BITS:
        return with_values(packet, (target, other.replace(field=target)))
    bits = other.varying & taken | (now.varying & ~cleared if isinstance(now, OpenNumber) else 0)
    first = now.low if isinstance(now, OpenNumber) else now
    base = ((first & ~cleared) ^ (other.low & taken)) & ~bits
    return with_values(packet, (target, OpenNumber(target, base, base | bits, other.why, bits) if bits else base))


def either_of(before: Packet, after: Packet, why: str) -> Packet | None:
    """A packet that became one or the other; None if they differ in more than marks, addresses and ports."""
    nothing = {field: getattr(before, field) for field in NUMBERS}
    if before.replace(unclear=()) != after.replace(**nothing, unclear=()):
        return None
    sets = {each for each in (*before.unclear, *after.unclear) if each.field not in NUMBERS}
    values = [(field, either(field, current(before, field), current(after, field), why)) for field in NUMBERS]
    both = with_values(after, *values)
    return both.replace(unclear=(*(each for each in both.unclear if each.field in NUMBERS), *sets))


def judged(match: Part, packet: Packet, facts: Facts) -> tuple[bool | None] | None:
    """Whether a match of unclear fields holds; in it None if that depends on their values. None for other matches."""
    if not any(unclear(packet, field) for field in fields_of(match)):
        return None
    held = _held(match, packet, facts)
    return (held if held is None else held != match.negated,)  # type: ignore[union-attr] # each of fields_of has it


def fields_of(match: Part) -> Sequence[str]:
    """The fields of a packet that a match compares, of those that may be unclear."""
    match match:
        case Mark():
            return ("mark",)
        case ConnMark():
            return ("connmark",)
        case Source():
            return ("source",)
        case Destination():
            return ("destination",)
        case SourcePorts():
            return ("source_port",)
        case DestinationPorts():
            return ("destination_port",)
        case Multiport(side):
            return PORTS[side]
        case AddressType(side) | AddressRange(side) | MaskedAddress(side):
            return (side,)
        case SetMember(name, sides):
            read = [SIDES[side] for side in sides]
            return (set_field(name), "mark", *read, *(f"{side}_port" for side in read))
        case _:
            return ()


def _held(match: Part, packet: Packet, facts: Facts) -> bool | None:
    match match:
        case Mark(value, mask) | ConnMark(value, mask):
            field = "mark" if isinstance(match, Mark) else "connmark"
            numbers: Any = current(packet, field)
            sure = numbers.must_be(value, mask)
            return sure if sure or not numbers.can_be(value, mask) else None
        case Source(network) | Destination(network):
            return _within(packet, fields_of(match), [interval(network)])
        case SourcePorts(ports) | DestinationPorts(ports):
            return _among(packet, fields_of(match), (ports,))
        case Multiport(_, ranges):
            return _among(packet, fields_of(match), ranges)
        case AddressRange(_, low, high):
            return _within(packet, fields_of(match), [(int.from_bytes(low), int.from_bytes(high))])
        case AddressType(side, types):
            from istio_init.simulate.semantics import address_types

            numbers = current(packet, side)
            own = (int.from_bytes(each.network.address) for each in facts.addresses)
            if any(numbers.within(address, address) is not False for address in own):
                return None
            return bool({*types} & address_types(getattr(packet, side), facts))
        case _:
            return None


def _among(packet: Packet, fields: Iterable[str], ranges: Iterable[PortRange]) -> bool | None:
    return _within(packet, fields, [(each.low, each.high) for each in ranges])


def _within(packet: Packet, fields: Iterable[str], ranges: list[tuple[int, int]]) -> bool | None:
    """Whether one of the fields is in one of the ranges."""
    answers = set()
    for field in fields:
        numbers = current(packet, field)
        for low, high in ranges:
            answers.add(numbers.within(low, high) if isinstance(numbers, OpenNumber) else low <= numbers <= high)
    return True if True in answers else None if None in answers else False


def unclear_routing(packet: Packet, facts: Facts) -> str:
    """Why the way that a packet takes is not known; empty if it is."""
    there = unclear(packet, "destination")
    own = [each.network.address for each in facts.addresses if len(each.network.address) == len(packet.destination)]
    if there and any(there.within(number, number) is not False for number in map(int.from_bytes, own)):
        return f"its destination may be an address of this machine: {there.why}"
    mark = unclear(packet, "mark")
    if mark is None or (not there and facts.is_local(packet.destination)):
        return ""
    tables = {route.table for route in facts.routes if route.family == packet.family}
    rules = [(each.mark, ALL_BITS, each) for each in facts.policy_rules]
    rules += [(each.mark, each.mask, each) for each in facts.masked_rules]  # type: ignore[misc]
    for value, mask, rule in rules:
        named = rule.family == packet.family and rule.table in tables
        if named and mark.can_be(value, mask) and not mark.must_be(value, mask):
            return f"its mark may be {value:#x}, which table {rule.table} routes: {mark.why}"
    return ""
