"""Describes what happened to a packet: why a match did not hold, and what a target did."""

from __future__ import annotations

from istio_init.errors import assert_never
from istio_init.formats.addresses import (
    address_text,
    endpoint_text,
    network_text,
    ports_text,
    protocol_text,
    range_text,
)
from istio_init.model.extensions import (
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.foreign import (
    AddressRange,
    AddressType,
    AnyMark,
    Assumed,
    ChangeSets,
    Direction,
    Fixed,
    MapAddress,
    MapPrefix,
    MaskedAddress,
    NoTrack,
    SetConnMark,
    TcpFlags,
    ToSelf,
    Translate,
    Undecidable,
)
from istio_init.model.ip_sets import SetMember
from istio_init.model.packet import Facts
from istio_init.model.rules import (
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    OutInterface,
    Owner,
    Protocol,
    Redirect,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unclear import ALL_BITS, OpenNumber
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from istio_init.simulate.foreign import assumptions, parts
from istio_init.simulate.foreign_targets import effect_of
from istio_init.simulate.unclear import MARKS, current, fields_of, judged, unclear

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.packet import Packet
    from istio_init.simulate.foreign import Part
    from istio_init.simulate.trace_steps import RuleStep


def packet_text(packet: Packet) -> str:
    """A packet in one line: protocol, endpoints, interface, owner, and what differs from the defaults."""
    source = endpoint_text(packet.source, packet.source_port)
    destination = endpoint_text(packet.destination, packet.destination_port)
    parts = [f"{protocol_text(packet.protocol)} {source} -> {destination}"]
    parts += [f"in {packet.in_interface}"] if packet.in_interface else []
    parts += [f"out {packet.out_interface}"] if packet.out_interface else []
    parts += [f"uid {packet.uid}"] if packet.uid is not None else []
    parts += [f"gid {packet.gid}"] if packet.gid is not None else []
    fields = {each.field for each in packet.unclear}
    parts += [f"mark {value_text(packet, 'mark')}"] if packet.mark or "mark" in fields else []
    parts += [f"connection mark {value_text(packet, 'connmark')}"] if packet.connmark or "connmark" in fields else []
    parts += [packet.ctstate] if packet.ctstate != "NEW" else []
    return ", ".join(parts)


def why_not(match: Part, packet: Packet) -> str:
    """Why a match did not hold for a packet, or why that cannot be decided."""
    what, expected = describe_match(match)
    if any(unclear(packet, field) for field in fields_of(match)) and _is_undecided(match, packet):
        return _why_undecided(match, packet, what, expected)
    if not expected:
        return what
    if isinstance(match, Owner) and _owner(match, packet) is None:
        return "no socket sent it"
    return _mismatch(what, _actual(match, packet), expected, negated=match.negated)  # type: ignore[union-attr] # Comment has none


def _is_undecided(match: Part, packet: Packet) -> bool:
    return isinstance(match, AddressType | SetMember) or judged(match, packet, Facts(())) == (None,)


def _why_undecided(match: Part, packet: Packet, what: str, expected: str) -> str:
    """Why it depends on what no rule determines whether a match holds."""
    numbers = [each for field in fields_of(match) if (each := unclear(packet, field))]
    if not expected or isinstance(match, SetMember):
        return f"whether {what} is not known: {numbers[0].why}"
    values = " and ".join(value_text(packet, each.field) for each in numbers)
    return f"{what} {values} ({numbers[0].why}): whether it is {expected} is not known"


def value_text(packet: Packet, field: str) -> str:
    """A field's value in words, or all that it may be."""
    numbers = current(packet, field)
    low = getattr(packet, field, 0)
    if not isinstance(numbers, OpenNumber):
        return _value(field, low)
    if numbers.bits == ALL_BITS or (numbers.low, numbers.high) == (0, ALL_BITS):
        return "any"
    if numbers.bits:
        return f"{_value(field, low)} with any of the bits {numbers.bits:#x}"
    high = numbers.high.to_bytes(len(low)) if isinstance(low, bytes) else numbers.high
    return f"{_value(field, low)} to {_value(field, high)}"


def _value(field: str, value: bytes | int) -> str:
    if isinstance(value, bytes):
        return address_text(value)
    return f"{value:#x}" if field in MARKS else str(value)


def _end_text(packet: Packet, side: str) -> str:
    """One side's address and port in words, or all that they may be."""
    port = getattr(packet, f"{side}_port")
    if not (unclear(packet, side) or unclear(packet, f"{side}_port")):
        return endpoint_text(getattr(packet, side), port)
    return value_text(packet, side) + (f" port {value_text(packet, f'{side}_port')}" if port else "")


def describe_match(match: Part) -> tuple[str, str]:  # noqa: C901 (one arm a kind)
    """The property of a packet that a match tests, and the value that it requires, empty if there is none."""
    match match:
        case Source(network):
            return "it comes from", network_text(network)
        case Destination(network):
            return "it goes to", network_text(network)
        case InInterface(name):
            return "it comes in by", name
        case OutInterface(name):
            return "it leaves by", name
        case Protocol(number):
            return "it is", protocol_text(number)
        case SourcePorts(ports):
            return "its source port is", ports_text(ports)
        case DestinationPorts(ports):
            return "its port is", ports_text(ports)
        case Multiport(_, ports):
            return "its port is", " or ".join(map(ports_text, ports))
        case Owner(kind, low, high):
            return f"its {kind} is", range_text(low, high)
        case Mark(value):
            return "its mark is", f"{value:#x}"
        case ConnMark(value):
            return "its connection's mark is", f"{value:#x}"
        case CtState(states):
            return "its connection is", " or ".join(states)
        case Comment():
            return "", ""
        case AddressType(side, types):
            return f"its {side} is {'' if match.negated else 'not '}of type {','.join(types)}", ""
        case AddressRange(side, low, high):
            direction = "it comes from" if side == "source" else "it goes to"
            return direction, f"{address_text(low)}-{address_text(high)}"
        case MaskedAddress(side, address, mask):
            direction = "it comes from" if side == "source" else "it goes to"
            return direction, f"{address_text(address)}/{address_text(mask)}"
        case TcpFlags(mask, compared):
            return "its TCP flags are", f"{_flags(compared)} of {_flags(mask)}"
        case Direction(reply):
            return "its direction is", _direction(reply=reply)
        case Assumed(held, why):
            return why if held else f"assumed false: {why}", ""
        case SetMember(name):
            return f"it is {'' if match.negated else 'not '}in the IP set {name}", ""
        case Undecidable(why):
            return f"{why} is not known" if not why.endswith("this program") else why, ""
        case UnknownMatch():
            return " and ".join(describe_match(part)[0] for part in parts(match)), ""
        case _:
            assert_never(match)


def _actual(match: Part, packet: Packet) -> str:  # noqa: C901 (one arm a kind)
    """The packet's value of the property that a match tests."""
    match match:
        case Source():
            return value_text(packet, "source")
        case Destination():
            return value_text(packet, "destination")
        case InInterface():
            return packet.in_interface or "no interface"
        case OutInterface():
            return packet.out_interface or "no interface yet"
        case Protocol():
            return protocol_text(packet.protocol)
        case SourcePorts():
            return _port(packet, "source_port")
        case DestinationPorts():
            return _port(packet, "destination_port")
        case Multiport(side):
            both = {"sports": _port(packet, "source_port"), "dports": _port(packet, "destination_port")}
            return both.get(side, " and ".join(both.values()))
        case Owner():
            return str(_owner(match, packet))
        case Mark():
            return value_text(packet, "mark")
        case ConnMark():
            return value_text(packet, "connmark")
        case CtState():
            return packet.ctstate
        case AddressRange(side) | MaskedAddress(side):
            return value_text(packet, side)
        case TcpFlags():
            return "SYN"
        case Direction():
            return _direction(reply=packet.reply)
        case Comment() | UnknownMatch() | AddressType() | Assumed() | SetMember() | Undecidable():
            return ""
        case _:
            assert_never(match)


def _direction(*, reply: bool) -> str:
    return "REPLY" if reply else "ORIGINAL"


def _flags(bits: int) -> str:
    names = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
    return ",".join(name for at, name in enumerate(names) if bits >> at & 1) or "NONE"


def _owner(match: Owner, packet: Packet) -> int | None:
    return packet.uid if match.kind == "uid" else packet.gid


def _mismatch(what: str, actual: str, expected: str, *, negated: bool) -> str:
    if negated:
        return f"{what} {actual}" if actual == expected else f"{what} {actual}, which is in {expected}"
    return f"{what} {actual}, not {expected}"


def _port(packet: Packet, field: str) -> str:
    return value_text(packet, field) if getattr(packet, field) else "none"


def effect(step: RuleStep) -> str:
    """What a matching rule did to the packet, or why that cannot be decided, with the assumptions made."""
    assumed = assumptions(step.rule.matches)
    return _effect(step) + (f", assuming that {assumed}" if assumed else "")


def _effect(step: RuleStep) -> str:
    before, after = step.before, step.after
    match step.rule.target:
        case Verdict(name):
            return {
                "RETURN": "leaves this chain",
                "ACCEPT": "passes this table",
                "DROP": "is dropped",
                "": "is counted",
            }.get(name, "is handed to a program")
        case Jump(chain, goto):
            return f"goes to chain {chain}" + (" (goto)" if goto else "")
        case Redirect():
            if not after.redirected:
                return f"is dropped: {before.in_interface} has no address to redirect to"
            return f"destination becomes {_end_text(after, 'destination')}"
        case Tproxy():
            return f"goes to the transparent socket on port {after.tproxy_port}, mark {value_text(after, 'mark')}"
        case SetMark() | RestoreMark():
            same = current(after, "mark") == current(before, "mark")
            return f"mark {'stays' if same else 'becomes'} {value_text(after, 'mark')}"
        case SaveMark():
            return f"the connection's mark becomes {value_text(after, 'connmark')}"
        case CtZone(zone):
            if before.tracked:
                return "connection tracking has seen it already"
            return f"conntrack zone {zone}" if before.zone is None else f"its conntrack zone stays {before.zone}"
        case UnknownTarget():
            return _foreign_effect(effect_of(step.rule.target), step)
        case _:
            assert_never(step.rule.target)


def _foreign_effect(effect: ForeignTarget, step: RuleStep) -> str:
    """What another program's target did to the packet."""
    before, after = step.before, step.after
    match effect:
        case Fixed(_, words):
            return words
        case SetConnMark():
            return f"the connection's mark becomes {value_text(after, 'connmark')}"
        case AnyMark() | ChangeSets():
            return _marking(effect, before, after)
        case NoTrack():
            return "connection tracking leaves it alone" if after.ctstate == "UNTRACKED" else "is tracked already"
        case MapAddress():
            side = "source" if before.hook in {"INPUT", "POSTROUTING"} else "destination"
            return f"{side} becomes {value_text(after, side)}"
        case MapPrefix(side):
            return f"{side} becomes {value_text(after, side)}"
        case ToSelf() if step.answer == "DROP":
            return f"is dropped: {before.in_interface} has no address to redirect to"
        case ToSelf():
            return f"destination becomes {_end_text(after, 'destination')}"
        case Translate(side, _, _, own):
            if own and step.answer == "DROP":
                return f"is dropped: {before.out_interface} has no address"
            return f"{side} becomes {_end_text(after, side)}"
        case _:
            assert_never(effect)


def _marking(effect: AnyMark | ChangeSets, before: Packet, after: Packet) -> str:
    """What a target did that gives marks, or changes IP sets."""
    if isinstance(effect, ChangeSets):
        return "changes an IP set" + (", and gets a mark from one" if effect.mark else "")
    whose = "its mark" if effect.field == "mark" else "the connection's mark"
    return (
        f"{whose} becomes {value_text(after, effect.field)}, by {effect.where}" if after != before else f"{whose} stays"
    )
