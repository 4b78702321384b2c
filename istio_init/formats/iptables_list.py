"""A rule in the columns of `iptables -L`: target, protocol, interfaces, networks; everything else is in `extra`.

The extra column is spelled as iptables 1.8.9 spells it (`iptables -nvL`, blanks apart), for native rules as `nft list`
does. Integration tests compare it with the output of both programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import assert_never
from istio_init.formats.addresses import (
    PROTOCOLS,
    address_text,
    ports_option,
    ports_text,
    range_text,
    short_network_text,
)
from istio_init.formats.iptables_save import ALL_BITS
from istio_init.formats.nft.listing import interval_text
from istio_init.formats.nft.listing import rule_text as inet_text
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
from istio_init.model.inet import Addresses, InetRule, Ports, chain_name, needs_family_match
from istio_init.model.rules import (
    IPV4,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    Protocol,
    Redirect,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from istio_init.record import Record

if TYPE_CHECKING:
    from istio_init.model.inet import InetMatch, Sets
    from istio_init.model.rules import Match, Rule, Target

ANY = "any"
ANYWHERE = "anywhere"
# How many of a set's networks are named.
MOST_NETWORKS = 3
_UNCOUNTED = "counter packets 0 bytes 0"


class Columns(Record):
    """A rule's columns as `iptables -L` names them: `any` and `anywhere` match every packet, ! negates."""

    target: str
    protocol: str = "all"
    in_interface: str = ANY
    out_interface: str = ANY
    source: str = ANYWHERE
    destination: str = ANYWHERE
    extra: str = ""


def columns(rule: Rule) -> Columns:
    """The columns of a rule of iptables'."""
    result = Columns(_target_name(rule.target))
    words: list[str] = []
    transport = ""
    for match in rule.matches:
        match match:
            case Protocol():
                transport = PROTOCOLS.get(match.number, str(match.number))
                result = result.replace(protocol=_not(transport, negated=match.negated))
            case InInterface():
                result = result.replace(in_interface=_not(match.name, negated=match.negated))
            case OutInterface():
                result = result.replace(out_interface=_not(match.name, negated=match.negated))
            case Source():
                result = result.replace(source=_not(short_network_text(match.network), negated=match.negated))
            case Destination():
                result = result.replace(destination=_not(short_network_text(match.network), negated=match.negated))
            case DestinationPorts() if words and words[-1].startswith(f"{transport} sp"):
                words.append(_ports("d", match))
            case SourcePorts() | DestinationPorts():
                words.append(f"{transport} {_ports('s' if isinstance(match, SourcePorts) else 'd', match)}")
            case _:
                words.append(_match_text(match))
    return result.replace(extra=" ".join(word for word in (*words, _target_options(rule.target)) if word))


def _not(text: str, *, negated: bool) -> str:
    return f"!{text}" if negated else text


def _ports(side: str, match: SourcePorts | DestinationPorts) -> str:
    single = match.ports.low == match.ports.high
    return f"{side}pt{'' if single else 's'}:{_not(ports_option(match.ports), negated=match.negated)}"


def _match_text(match: Match) -> str:
    """The text of a match that has no column of its own."""
    match match:
        case Multiport():
            return f"multiport {match.side} {'!' * match.negated}{','.join(map(ports_option, match.ports))}"
        case Owner():
            ids = range_text(match.low, match.high)
            return f"{'! ' * match.negated}owner {match.kind.upper()} match {ids}"
        case Mark() | ConnMark():
            kind = "mark" if isinstance(match, Mark) else "connmark"
            mask = "" if match.mask == ALL_BITS else f"/{match.mask:#x}"
            return f"{kind} match {'! ' * match.negated}{match.value:#x}{mask}"
        case CtState():
            return f"{'! ' * match.negated}ctstate {','.join(match.states)}"
        case Comment():
            return f"/* {match.text} */"
        case UnknownMatch():
            return (
                f"[{match.name}: {len(match.data)} bytes]" if match.options is None else f"{match.name} {match.options}"
            )
        case (
            Source() | Destination() | InInterface() | OutInterface() | Protocol() | SourcePorts() | DestinationPorts()
        ):
            return ""
        case _:
            assert_never(match)


def _target_name(target: Target) -> str:
    match target:
        case Verdict() | UnknownTarget():
            return target.name
        case Jump():
            return target.chain
        case Redirect():
            return "REDIRECT"
        case Tproxy():
            return "TPROXY"
        case SetMark():
            return "MARK"
        case SaveMark() | RestoreMark():
            return "CONNMARK"
        case CtZone():
            return "CT"
        case _:
            assert_never(target)


def _target_options(target: Target) -> str:
    """The options of a target, if its name does not say everything."""
    match target:
        case Verdict():
            return ""
        case Jump():
            return "[goto]" if target.goto else ""
        case Redirect():
            return f"redir ports {ports_text(target.ports)}"
        case Tproxy():
            address = address_text(target.address)
            return f"TPROXY redirect {address}:{target.port} mark {target.mark:#x}/{target.mask:#x}"
        case SetMark():
            return f"MARK {_mark_words(target)}"
        case SaveMark():
            masks = f" nfmask {target.nfmask:#x} ctmask ~{target.ctmask:#x}"
            return f"CONNMARK save{masks if {target.nfmask, target.ctmask} != {ALL_BITS} else ''}"
        case RestoreMark():
            masks = f" ctmask {target.ctmask:#x} nfmask ~{target.nfmask:#x}"
            return f"CONNMARK restore{masks if {target.nfmask, target.ctmask} != {ALL_BITS} else ''}"
        case CtZone():
            return f"CT zone {target.zone}" if target.zone else "CT"
        case UnknownTarget():
            return f"[{target.name}: {len(target.data)} bytes]" if target.options is None else target.options
        case _:
            assert_never(target)


def _mark_words(target: SetMark) -> str:
    value, mask = target.value, target.mask
    if mask == ALL_BITS:
        return f"set {value:#x}"
    if value == 0:
        return f"and {mask ^ ALL_BITS:#x}"
    if value == mask:
        return f"or {value:#x}"
    return f"xor {value:#x}" if mask == 0 else f"xset {value:#x}/{mask:#x}"


def inet_columns(rule: InetRule, named: Sets) -> Columns:
    """The columns of a native rule, given the table's sets."""
    result = Columns(_inet_target(rule.target))
    rest: list[InetMatch] = []
    for match in rule.matches:
        match match:
            case Protocol():
                name = PROTOCOLS.get(match.number, str(match.number))
                result = result.replace(protocol=_not(name, negated=match.negated))
            case InInterface():
                result = result.replace(in_interface=_not(match.name, negated=match.negated))
            case OutInterface():
                result = result.replace(out_interface=_not(match.name, negated=match.negated))
            case Addresses(side="saddr"):
                result = result.replace(source=_addresses(match, rule))
            case Addresses():
                result = result.replace(destination=_addresses(match, rule))
            case Ports():
                result = result.replace(protocol=PROTOCOLS.get(match.protocol, str(match.protocol)))
                rest.append(match)
            case _:
                rest.append(match)
    return result.replace(extra=_inet_extra(rule, tuple(rest), named))


def _inet_extra(rule: InetRule, rest: tuple[InetMatch, ...], named: Sets) -> str:
    other_matches = InetRule(rest, rule.target, rule.family if needs_family_match(rule) else None)
    matches, _, action = inet_text(other_matches, named).partition(_UNCOUNTED)
    named_by_target = isinstance(rule.target, Jump | Verdict) and not getattr(rule.target, "goto", False)
    return f"{matches.strip()} {'' if named_by_target else action.strip()}".strip()


def _inet_target(target: Target) -> str:
    if isinstance(target, Jump):
        return chain_name(target.chain)
    if isinstance(target, UnknownTarget):
        return "..."
    return _target_name(target).lower()


def _addresses(match: Addresses, rule: InetRule) -> str:
    family = rule.family or IPV4
    if match.networks:
        firsts = sorted(match.networks)[:MOST_NETWORKS]
        spans = [short_network_text(Network(each, match.prefix)) for each in firsts]
    else:
        spans = [interval_text(each, family) for each in match.intervals[:MOST_NETWORKS]]
    more = len(match.networks or match.intervals) - len(spans)
    text = ", ".join(spans) + (f", {more} more" if more else "")
    return _not(text if len(match.intervals) == 1 else f"{{ {text} }}", negated=match.negated)
