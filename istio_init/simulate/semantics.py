"""What each match asks of a packet and what each target makes of it, as the kernel's extensions have it.

- xt_owner finds no socket where a packet has none: then only a negated match holds.
- xt_connmark matches nothing, negated or not, where connection tracking knows no connection.
- The first CT target that a packet meets chooses its zone; later ones, and those on lo's way back, do nothing.

Nothing is guessed: None for a match and UNDECIDED for a target whose effect is not known.
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.packet import Facts, Packet
    from istio_init.model.rules import Match, PortRange, Target

# States in which a packet has no connection.
UNCONNECTED = frozenset({"INVALID", "UNTRACKED"})

# Targets that we don't model, and that leave a packet as it is as far as this program is concerned; and those
# that end its way.
HARMLESS = frozenset({"LOG", "NFLOG", "AUDIT", "TCPMSS", "CHECKSUM", "CLASSIFY"})
DROPPING = frozenset({"REJECT"})


def matches(all_of: Sequence[Match], packet: Packet) -> tuple[bool | None, Match | None]:
    """Whether all matches hold, and the first that does not; None where that hangs on what we don't model."""
    undecided = None
    for match in all_of:
        held = holds(match, packet)
        if held is False:
            return False, match
        if held is None:
            undecided = undecided or match
    return (None, undecided) if undecided else (True, None)


def holds(match: Match, packet: Packet) -> bool | None:  # noqa: C901 (one arm a kind)
    """Whether the kernel would find this match to hold; None where that cannot be decided."""
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
        case UnknownMatch():
            return None
        case _:
            assert_never(match)


def _has_ports(packet: Packet) -> bool:
    return packet.protocol in {TCP, UDP}


def _in(ports: PortRange, port: int) -> bool:
    return ports.low <= port <= ports.high


def _among(match: Multiport, packet: Packet) -> bool:
    sides = {"sports": (packet.source_port,), "dports": (packet.destination_port,)}
    asked = sides.get(match.side, (packet.source_port, packet.destination_port))
    return any(_in(ports, port) for ports in match.ports for port in asked)


def _in_state(states: tuple[str, ...], packet: Packet) -> bool:
    return packet.ctstate in states or (packet.redirected and "DNAT" in states)


def act(target: Target, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """What a target makes of a packet that its rule matches: the packet behind it, and an Answer, JUMP or RETURN."""
    match target:
        case Verdict(name):
            return packet, name or "CONTINUE"
        case Jump():
            return packet, "JUMP"
        case Redirect():
            return _redirected(target, packet, facts)
        case Tproxy(port, _, value, mask):
            # The transparent listener is taken to be there; without one the kernel drops the packet.
            socket = port or packet.destination_port
            return packet.replace(mark=(packet.mark & ~mask) ^ value, tproxy_port=socket), "ACCEPT"
        case SetMark(value, mask):
            return packet.replace(mark=(packet.mark & ~mask) ^ value), "CONTINUE"
        case SaveMark() | RestoreMark():
            return _connection_mark(target, packet), "CONTINUE"
        case CtZone(zone):
            chosen = packet.tracked or packet.zone is not None
            return packet if chosen else packet.replace(zone=zone), "CONTINUE"
        case UnknownTarget(name):
            return packet, answer_of(name)
        case _:
            assert_never(target)


def answer_of(unknown: str) -> str:
    """What a target of this name, that we don't model, makes of a packet's way."""
    return "CONTINUE" if unknown in HARMLESS else "DROP" if unknown in DROPPING else "UNDECIDED"


def _redirected(target: Redirect, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """To this machine: OUTPUT to the loopback address, PREROUTING to the address of the interface it came in by."""
    if target.ports.low != target.ports.high:
        return packet, "UNDECIDED"  # the port is for the kernel to choose
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
