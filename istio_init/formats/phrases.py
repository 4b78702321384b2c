"""A rule in a few words, for a row of a picture: `out lo, not to 127.0.0.1, uid 1337` and `REDIRECT 15001`."""

from __future__ import annotations

from istio_init.errors import assert_never
from istio_init.formats.addresses import address_text, protocol_text
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
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.rules import Match, Network, PortRange, Target

EVERYTHING = "everything"
PORT_SIDES = {"sports": "source ports", "dports": "ports", "ports": "either port"}


def plain(text: str) -> str:
    """The text with what can't be seen, or would turn its direction around, spelled as Python would."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def matches_words(matches: Sequence[Match]) -> str:
    """What a rule asks of a packet."""
    words = ""
    before: Match | None = None
    # Interfaces first: they are what a row is recognised by. A port stays behind its protocol.
    for match in sorted(matches, key=lambda match: not isinstance(match, InInterface | OutInterface)):
        phrase = _match(match)
        if not phrase:
            continue
        ports = isinstance(match, SourcePorts | DestinationPorts | Multiport)
        words += ("" if not words else " " if ports and isinstance(before, Protocol) else ", ") + phrase
        before = match
    return plain(words) or EVERYTHING


def _match(match: Match) -> str:  # noqa: C901 (one arm a kind)
    match match:
        case Source(network, negated):
            return f"{_not(negated)}from {_network(network)}"
        case Destination(network, negated):
            return f"{_not(negated)}to {_network(network)}"
        case InInterface(name, negated):
            return f"{_not(negated)}in {name}"
        case OutInterface(name, negated):
            return f"{_not(negated)}out {name}"
        case Protocol(number, negated):
            return f"{_not(negated)}{protocol_text(number)}" if number else ""
        case SourcePorts(ports, negated):
            return f"source port {_not(negated)}{_ports(ports)}"
        case DestinationPorts(ports, negated):
            return f"port {_not(negated)}{_ports(ports)}"
        case Multiport(side, ports, negated):
            return f"{PORT_SIDES[side]} {_not(negated)}{','.join(map(_ports, ports))}"
        case Owner(kind, low, high, negated):
            return f"{kind} {_not(negated)}{low if low == high else f'{low}-{high}'}"
        case Mark(value, mask, negated):
            return f"mark {_not(negated)}{_mark(value, mask)}"
        case ConnMark(value, mask, negated):
            return f"connection mark {_not(negated)}{_mark(value, mask)}"
        case CtState(states, negated):
            return f"state {_not(negated)}{','.join(states)}"
        case Comment(text):
            return f'"{text}"'
        case UnknownMatch(name):
            return f"-m {name} ?"
        case _:
            assert_never(match)


def target_words(target: Target) -> str:
    """What a rule does with a packet."""
    return plain(_target(target))


def _target(target: Target) -> str:
    match target:
        case Verdict(name):
            return name or "only counts"
        case Jump(chain, goto):
            return f"{'goto' if goto else '→'} {chain}"
        case Redirect(ports):
            return f"REDIRECT {_ports(ports)}"
        case Tproxy(port):
            return f"TPROXY {port or 'its own port'}"
        case SetMark(value, mask):
            return f"MARK {_mark(value, mask)}"
        case SaveMark():
            return "CONNMARK save"
        case RestoreMark():
            return "CONNMARK restore"
        case CtZone(zone):
            return f"CT zone {zone}"
        case UnknownTarget(name):
            return f"{name} ?"
        case _:
            assert_never(target)


def _not(negated: bool) -> str:  # noqa: FBT001 (a match's field)
    return "not " if negated else ""


def _network(network: Network) -> str:
    address = address_text(network.address)
    return address if network.prefix == len(network.address) * 8 else f"{address}/{network.prefix}"


def _ports(ports: PortRange) -> str:
    return str(ports.low) if ports.low == ports.high else f"{ports.low}-{ports.high}"


def _mark(value: int, mask: int) -> str:
    return f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"
