"""A rule in the columns of `iptables -L`: target, protocol, interfaces, networks, and all else as extra.

The words of the extra column are those of iptables 1.8.9 (`iptables -nvL`) but for blanks, or for native rules those
of `nft list`. Integration tests hold them against the programs themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import assert_never
from istio_init.formats.iptables_save import ALL_BITS, PROTOCOLS, network_text
from istio_init.formats.nft.listing import address_text
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
from istio_init.model.inet import Addresses, InetRule, Ports, asks_family, chain_name
from istio_init.model.rules import (
    IPV4,
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
from istio_init.record import Record

if TYPE_CHECKING:
    from istio_init.model.inet import Ask, Sets
    from istio_init.model.rules import Match, Network, PortRange, Rule, Target

ANY = "any"
ANYWHERE = "anywhere"
# How many of a set's networks are named.
MOST_NETWORKS = 3
_UNCOUNTED = "counter packets 0 bytes 0"


class Columns(Record):
    """A rule's columns as the article's table has them: `any` and `anywhere` where nothing is asked, ! for not."""

    target: str
    protocol: str = "all"
    in_interface: str = ANY
    out_interface: str = ANY
    source: str = ANYWHERE
    destination: str = ANYWHERE
    extra: str = ""


def columns(rule: Rule) -> Columns:
    """The columns of a rule of iptables'."""
    told = Columns(_target_name(rule.target))
    words: list[str] = []
    transport = ""
    for match in rule.matches:
        match match:
            case Protocol():
                transport = PROTOCOLS.get(match.number, str(match.number))
                told = told.replace(protocol=_not(transport, negated=match.negated))
            case InInterface():
                told = told.replace(in_interface=_not(match.name, negated=match.negated))
            case OutInterface():
                told = told.replace(out_interface=_not(match.name, negated=match.negated))
            case Source():
                told = told.replace(source=_not(_network(match.network), negated=match.negated))
            case Destination():
                told = told.replace(destination=_not(_network(match.network), negated=match.negated))
            case DestinationPorts() if words and words[-1].startswith(f"{transport} sp"):
                words.append(_ports("d", match))
            case SourcePorts() | DestinationPorts():
                words.append(f"{transport} {_ports('s' if isinstance(match, SourcePorts) else 'd', match)}")
            case _:
                words.append(_asked(match))
    return told.replace(extra=" ".join(word for word in (*words, _done(rule.target)) if word))


def _not(text: str, *, negated: bool) -> str:
    return f"!{text}" if negated else text


def _network(network: Network) -> str:
    """A network; a single address without its prefix."""
    text = network_text(network)
    return text.partition("/")[0] if network.prefix == len(network.address) * 8 else text


def _ports(side: str, match: SourcePorts | DestinationPorts) -> str:
    single = match.ports.low == match.ports.high
    return f"{side}pt{'' if single else 's'}:{_not(_range(match.ports), negated=match.negated)}"


def _range(ports: PortRange, dash: str = ":") -> str:
    return str(ports.low) if ports.low == ports.high else f"{ports.low}{dash}{ports.high}"


def _asked(match: Match) -> str:
    """What a match that has no column of its own asks."""
    match match:
        case Multiport():
            return f"multiport {match.side} {'!' * match.negated}{','.join(map(_range, match.ports))}"
        case Owner():
            ids = str(match.low) if match.low == match.high else f"{match.low}-{match.high}"
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
            return f"[{match.name}: {len(match.data)} bytes]"
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


def _done(target: Target) -> str:
    """What a target does, where its name does not say all."""
    match target:
        case Verdict():
            return ""
        case Jump():
            return "[goto]" if target.goto else ""
        case Redirect():
            return f"redir ports {_range(target.ports, '-')}"
        case Tproxy():
            address = network_text_of(target.address)
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
            return f"[{target.name}: {len(target.data)} bytes]"
        case _:
            assert_never(target)


def network_text_of(address: bytes) -> str:
    """A packed address as text."""
    return address_text((int.from_bytes(address, "big"),) * 2, IPV4 if len(address) == 4 else "ipv6")


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
    told = Columns(_inet_target(rule.target))
    rest: list[Ask] = []
    for match in rule.matches:
        match match:
            case Protocol():
                name = PROTOCOLS.get(match.number, str(match.number))
                told = told.replace(protocol=_not(name, negated=match.negated))
            case InInterface():
                told = told.replace(in_interface=_not(match.name, negated=match.negated))
            case OutInterface():
                told = told.replace(out_interface=_not(match.name, negated=match.negated))
            case Addresses(side="saddr"):
                told = told.replace(source=_addresses(match, rule))
            case Addresses():
                told = told.replace(destination=_addresses(match, rule))
            case Ports():
                told = told.replace(protocol=PROTOCOLS.get(match.protocol, str(match.protocol)))
                rest.append(match)
            case _:
                rest.append(match)
    return told.replace(extra=_inet_extra(rule, tuple(rest), named))


def _inet_extra(rule: InetRule, rest: tuple[Ask, ...], named: Sets) -> str:
    asking = InetRule(rest, rule.target, rule.family if asks_family(rule) else None)
    asked, _, done = inet_text(asking, named).partition(_UNCOUNTED)
    named_by_target = isinstance(rule.target, Jump | Verdict) and not getattr(rule.target, "goto", False)
    return f"{asked.strip()} {'' if named_by_target else done.strip()}".strip()


def _inet_target(target: Target) -> str:
    if isinstance(target, Jump):
        return chain_name(target.chain)
    if isinstance(target, UnknownTarget):
        return "..."
    return _target_name(target).lower()


def _addresses(match: Addresses, rule: InetRule) -> str:
    family = rule.family or IPV4
    spans = [address_text(each, family) for each in match.intervals[:MOST_NETWORKS]]
    more = len(match.intervals) - len(spans)
    text = ", ".join(spans) + (f", {more} more" if more else "")
    return _not(text if len(match.intervals) == 1 else f"{{ {text} }}", negated=match.negated)
