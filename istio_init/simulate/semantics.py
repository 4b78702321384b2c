"""The semantics of matches and targets, as in the kernel's extensions.

- xt_owner finds no socket where a packet has none: then only a negated match holds.
- xt_connmark matches nothing, negated or not, without a tracked connection.
- The first CT target sets a packet's zone; later ones have no effect, nor have those after the packet returned by lo.

The result is None for an unknown match and UNDECIDED for an unknown target.
"""

from __future__ import annotations

from istio_init.errors import assert_never
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
    Assumed,
    Direction,
    MaskedAddress,
    TcpFlags,
    Undecidable,
)
from istio_init.model.ip_sets import SetMember
from istio_init.model.packet import UNCONNECTED, contains, is_named
from istio_init.model.rules import (
    TCP,
    UDP,
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
from istio_init.simulate.foreign import parts
from istio_init.simulate.foreign_effects import apply, to_self
from istio_init.simulate.foreign_targets import effect_of
from istio_init.simulate.unclear import copied, judged, marked, with_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.packet import Facts, Packet
    from istio_init.model.rules import Match, PortRange, Target
    from istio_init.simulate.foreign import Part

# The TCP flags of a connection's first packet.
SYN = 2


def matches(all_of: Sequence[Match], packet: Packet, facts: Facts) -> tuple[bool | None, Part | None]:
    """Whether all matches hold, and the first that does not; None if that depends on something not modelled.

    For an UnknownMatch, the part that does not hold is returned if it is known.
    """
    undecided = None
    for match in all_of:
        for part in parts(match, facts.ip_sets) if isinstance(match, UnknownMatch) else (match,):
            held = holds(part, packet, facts)
            if held is False:
                return False, part
            if held is None:
                whole = isinstance(match, UnknownMatch) and match.options is None
                undecided = undecided or (match if whole else part)
    return (None, undecided) if undecided else (True, None)


def after_matching(all_of: Sequence[Match], packet: Packet) -> Packet:
    """The packet after the matches of a rule were tried: -m socket --restore-skmark gives it its socket's mark."""
    if not any(isinstance(each, UnknownMatch) and "--restore-skmark" in (each.options or "") for each in all_of):
        return packet
    return with_values(packet, ("mark", OpenNumber("mark", 0, ALL_BITS, "the mark of a socket")))


def holds(match: Part, packet: Packet, facts: Facts) -> bool | None:  # noqa: C901 (one arm a kind)
    """Whether this match holds in the kernel; None if that cannot be decided."""
    if packet.unclear and (answer := judged(match, packet, facts)):
        return answer[0]
    match match:
        case Source(network, negated):
            return contains(network, packet.source) != negated
        case Destination(network, negated):
            return contains(network, packet.destination) != negated
        case InInterface(name, negated):
            return is_named(name, packet.in_interface) != negated
        case OutInterface(name, negated):
            return is_named(name, packet.out_interface) != negated
        case Protocol(number, negated):
            return number == 0 or (packet.protocol == number) != negated
        case SourcePorts(ports, negated):
            return _has_ports(packet) and _in(ports, packet.source_port) != negated
        case DestinationPorts(ports, negated):
            return _has_ports(packet) and _in(ports, packet.destination_port) != negated
        case Multiport():
            return _has_ports(packet) and _among(match, packet) != match.negated
        case Owner(kind, low, high, negated):
            owner = packet.uid if kind == "uid" else packet.gid
            return negated if owner is None else (low <= owner <= high) != negated
        case Mark(value, mask, negated):
            return (packet.mark & mask == value) != negated
        case ConnMark(value, mask, negated):
            return packet.ctstate not in UNCONNECTED and (packet.connmark & mask == value) != negated
        case CtState(states, negated):
            return _in_state(states, packet) != negated
        case Comment():
            return True
        case AddressType(side, types, negated):
            return bool({*types} & address_types(getattr(packet, side), facts)) != negated
        case AddressRange(side, low, high, negated):
            address = getattr(packet, side)
            return (len(address) == len(low) and low <= address <= high) != negated
        case MaskedAddress(side, address, mask, negated):
            own = getattr(packet, side)
            return (bytes(a & b for a, b in zip(own, mask, strict=False)) == address) != negated
        case TcpFlags(mask, compared, negated):
            return _has_flags(packet, mask, compared, negated=negated)
        case Direction(reply):
            return (packet.reply == reply) != match.negated
        case Assumed(held):
            return held
        case SetMember():
            return match.holds(packet)
        case Undecidable():
            return None
        case UnknownMatch():
            every = [holds(part, packet, facts) for part in parts(match, facts.ip_sets)]
            return False if False in every else None if None in every else True
        case _:
            assert_never(match)


def address_types(address: bytes, facts: Facts) -> set[str]:
    """The types of an address as in xt_addrtype; a local IPv6 address is UNICAST as well."""
    if address[0] == 0xFF if len(address) == 16 else 0xE0 <= address[0] < 0xF0:
        return {"MULTICAST"}
    if address == b"\xff" * 4:
        return {"BROADCAST"}
    local = facts.is_local(address)
    return ({"LOCAL"} if local else set()) | ({"UNICAST"} if not local or len(address) == 16 else set())


def _has_flags(packet: Packet, mask: int, compared: int, *, negated: bool) -> bool | None:
    """Whether a TCP packet has these flags: a connection's first packet has only SYN; later ones are unknown."""
    if packet.protocol != TCP:
        return False
    return (SYN & mask == compared) != negated if packet.ctstate == "NEW" else None


def _has_ports(packet: Packet) -> bool:
    return packet.protocol in {TCP, UDP}


def _in(ports: PortRange, port: int) -> bool:
    return ports.low <= port <= ports.high


def _among(match: Multiport, packet: Packet) -> bool:
    sides = {"sports": (packet.source_port,), "dports": (packet.destination_port,)}
    ports_of_packet = sides.get(match.side, (packet.source_port, packet.destination_port))
    return any(_in(ports, port) for ports in match.ports for port in ports_of_packet)


def _in_state(states: tuple[str, ...], packet: Packet) -> bool:
    return packet.ctstate in states or (packet.redirected and "DNAT" in states)


def act(target: Target, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """The effect of a target on a packet: the packet afterwards, and an Answer, JUMP or RETURN."""
    match target:
        case Verdict(name):
            return packet, name or "CONTINUE"
        case Jump():
            return packet, "JUMP"
        case Redirect():
            return _redirect(target, packet, facts)
        case Tproxy(port, _, value, mask):
            # A transparent listener is assumed to exist; without one the kernel drops the packet.
            socket = port or packet.destination_port
            return marked(packet, "mark", value, mask).replace(tproxy_port=socket), "ACCEPT"
        case SetMark(value, mask):
            return marked(packet, "mark", value, mask), "CONTINUE"
        case SaveMark() | RestoreMark():
            return _connection_mark(target, packet), "CONTINUE"
        case CtZone(zone):
            chosen = packet.tracked or packet.zone is not None
            return packet if chosen else packet.replace(zone=zone), "CONTINUE"
        case UnknownTarget():
            return apply(effect_of(target), packet, facts)
        case _:
            assert_never(target)


def _redirect(target: Redirect, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """REDIRECT: in OUTPUT to the loopback address, in PREROUTING to an address of the incoming interface."""
    return to_self(packet, facts, target.ports.low, target.ports.high)


def _connection_mark(target: SaveMark | RestoreMark, packet: Packet) -> Packet:
    if packet.ctstate in UNCONNECTED:
        return packet
    if isinstance(target, SaveMark):
        return copied(packet, "mark", target.nfmask, "connmark", target.ctmask)
    return copied(packet, "connmark", target.ctmask, "mark", target.nfmask)
