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
    Fixed,
    MapAddress,
    NoTrack,
    SetConnMark,
    TcpFlags,
    Translate,
    Undecidable,
)
from istio_init.model.ip_sets import SetMember
from istio_init.model.packet import LOOPBACKS, contains, is_named
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
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from istio_init.simulate.foreign import effect_of, parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.packet import Facts, Packet
    from istio_init.model.rules import Match, Network, PortRange, Target
    from istio_init.simulate.foreign import Part

# States in which a packet has no connection.
UNCONNECTED = frozenset({"INVALID", "UNTRACKED"})


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


def holds(match: Part, packet: Packet, facts: Facts) -> bool | None:  # noqa: C901 (one arm a kind)
    """Whether this match holds in the kernel; None if that cannot be decided."""
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
            return packet.replace(mark=(packet.mark & ~mask) ^ value, tproxy_port=socket), "ACCEPT"
        case SetMark(value, mask):
            return packet.replace(mark=(packet.mark & ~mask) ^ value), "CONTINUE"
        case SaveMark() | RestoreMark():
            return _connection_mark(target, packet), "CONTINUE"
        case CtZone(zone):
            chosen = packet.tracked or packet.zone is not None
            return packet if chosen else packet.replace(zone=zone), "CONTINUE"
        case UnknownTarget():
            return _foreign(effect_of(target), packet, facts)
        case _:
            assert_never(target)


def _foreign(effect: ForeignTarget, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """The effect of another program's target on a packet."""
    match effect:
        case Fixed(answer):
            return packet, answer
        case SetConnMark(value, mask):
            if packet.ctstate in UNCONNECTED:
                return packet, "CONTINUE"
            return packet.replace(connmark=(packet.connmark & ~mask) ^ value), "CONTINUE"
        case NoTrack():
            return packet if packet.tracked else packet.replace(ctstate="UNTRACKED"), "CONTINUE"
        case Translate(side, address, port, own, chosen):
            if chosen:
                return packet, "UNDECIDED"
            if own and (address := facts.masquerade(packet.out_interface, packet.destination)) is None:
                return packet, "DROP"
            ends: dict[str, object] = {side: address} if address else {}
            if port and packet.protocol in {TCP, UDP}:
                ends[f"{side}_port"] = port
            return packet.replace(**ends, redirected=packet.redirected or side == "destination"), "ACCEPT"
        case MapAddress(network):
            side = "source" if packet.hook in {"INPUT", "POSTROUTING"} else "destination"
            mapped = _mapped(getattr(packet, side), network)
            return packet.replace(**{side: mapped}, redirected=packet.redirected or side == "destination"), "ACCEPT"
        case _:
            assert_never(effect)


def _mapped(address: bytes, network: Network) -> bytes:
    """An address in another network, with its own host part."""
    hosts = (1 << len(address) * 8 - network.prefix) - 1
    mapped = int.from_bytes(network.address) & ~hosts | int.from_bytes(address) & hosts
    return mapped.to_bytes(len(address))


def _redirect(target: Redirect, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """REDIRECT: in OUTPUT to the loopback address, in PREROUTING to an address of the incoming interface."""
    if target.ports.low != target.ports.high:
        return packet, "UNDECIDED"  # the kernel chooses the port
    if packet.hook == "OUTPUT":
        address: bytes | None = LOOPBACKS[packet.family]
    else:
        address = facts.primary(packet.in_interface, packet.destination)
    if address is None:
        return packet, "DROP"
    return packet.replace(destination=address, destination_port=target.ports.low, redirected=True), "ACCEPT"


def _connection_mark(target: SaveMark | RestoreMark, packet: Packet) -> Packet:
    if packet.ctstate in UNCONNECTED:
        return packet
    if isinstance(target, SaveMark):
        return packet.replace(connmark=(packet.connmark & ~target.ctmask) ^ (packet.mark & target.nfmask))
    return packet.replace(mark=(packet.mark & ~target.nfmask) ^ (packet.connmark & target.ctmask))
