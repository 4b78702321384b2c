"""A rule in a few words, for a row of a picture: `out lo, not to 127.0.0.1, uid 1337` and `REDIRECT 15001`."""

from __future__ import annotations

from istio_init.errors import assert_never, printable
from istio_init.formats.addresses import ports_text, protocol_text, range_text, short_network_text
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

    from istio_init.model.rules import Match, Target

EVERYTHING = "everything"
PORT_SIDES = {"sports": "source ports", "dports": "ports", "ports": "either port"}


def matches_words(matches: Sequence[Match]) -> str:
    """The packets that a rule matches."""
    words = ""
    before: Match | None = None
    # Interfaces first: readers recognise a row by them. A port follows its protocol.
    for match in sorted(matches, key=lambda match: not isinstance(match, InInterface | OutInterface)):
        phrase = _match(match)
        if not phrase:
            continue
        ports = isinstance(match, SourcePorts | DestinationPorts | Multiport)
        words += ("" if not words else " " if ports and isinstance(before, Protocol) else ", ") + phrase
        before = match
    return printable(words) or EVERYTHING


def _match(match: Match) -> str:  # noqa: C901 (one arm a kind)
    match match:
        case Source(network, negated):
            return f"{_not(negated)}from {short_network_text(network)}"
        case Destination(network, negated):
            return f"{_not(negated)}to {short_network_text(network)}"
        case InInterface(name, negated):
            return f"{_not(negated)}in {name}"
        case OutInterface(name, negated):
            return f"{_not(negated)}out {name}"
        case Protocol(number, negated):
            return f"{_not(negated)}{protocol_text(number)}" if number else ""
        case SourcePorts(ports, negated):
            return f"source port {_not(negated)}{ports_text(ports)}"
        case DestinationPorts(ports, negated):
            return f"port {_not(negated)}{ports_text(ports)}"
        case Multiport(side, ports, negated):
            return f"{PORT_SIDES[side]} {_not(negated)}{','.join(map(ports_text, ports))}"
        case Owner(kind, low, high, negated):
            return f"{kind} {_not(negated)}{range_text(low, high)}"
        case Mark(value, mask, negated):
            return f"mark {_not(negated)}{_mark(value, mask)}"
        case ConnMark(value, mask, negated):
            return f"connection mark {_not(negated)}{_mark(value, mask)}"
        case CtState(states, negated):
            return f"state {_not(negated)}{','.join(states)}"
        case Comment(text):
            return f'"{text}"'
        case UnknownMatch(name, _, _, options):
            return f"-m {name} ?" if options is None else f"{name} {options}"
        case _:
            assert_never(match)


def target_words(target: Target) -> str:
    """What a rule does with a packet."""
    return printable(_target(target))


def _target(target: Target) -> str:
    match target:
        case Verdict(name):
            return name or "only counts"
        case Jump(chain, goto):
            return f"{'goto' if goto else '→'} {chain}"
        case Redirect(ports):
            return f"REDIRECT {ports_text(ports)}"
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
        case UnknownTarget(name, _, _, options):
            return f"{name} ?" if options is None else f"{name} {options}".rstrip()
        case _:
            assert_never(target)


def _not(negated: bool) -> str:  # noqa: FBT001 (a match's field)
    return "not " if negated else ""


def _mark(value: int, mask: int) -> str:
    return f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"
