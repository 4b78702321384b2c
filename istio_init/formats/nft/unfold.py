"""Rules of nftables as rules of iptables: merge.py undone."""

from __future__ import annotations

from istio_init.model.inet import Addresses, Ports, networks
from istio_init.model.rules import (
    Destination,
    DestinationPorts,
    Network,
    PortRange,
    Protocol,
    Rule,
    Source,
    SourcePorts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.model.inet import InetMatch, InetRule
    from istio_init.model.rules import Family, Match

# The order of a rule's matches in iptables, by the names of their classes.
_IPTABLES_ORDER = (
    *("Source", "Destination", "InInterface", "OutInterface", "Protocol", "SourcePorts", "DestinationPorts"),
    *("Multiport", "Owner", "Mark", "ConnMark", "CtState", "UnknownMatch"),
)
_IPTABLES_RANK = {kind: rank for rank, kind in enumerate(_IPTABLES_ORDER)}


def unfold(rule: InetRule, family: Family) -> tuple[Rule, ...]:
    """The equivalent rules of one family: one for each interval of ports, one for each network."""
    choices: list[tuple[Match, ...]] = [()]
    for each_match in rule.matches:
        choices = [(*before, *each) for before in choices for each in _choices(each_match, family)]
    for number, matches in enumerate(choices):
        choices[number] = in_order(dict.fromkeys(matches))
    if rule.comment:
        from istio_init.model.unknown import Comment

        choices = [(*matches, Comment(rule.comment)) for matches in choices]
    return tuple(Rule(matches, rule.target, ours=True) for matches in choices)


def in_order(matches: Iterable[Match]) -> tuple[Match, ...]:
    """Matches in the order in which iptables-save prints them."""
    return tuple(sorted(matches, key=lambda match: _IPTABLES_RANK[type(match).__name__]))


def _choices(inet: InetMatch, family: Family) -> tuple[tuple[Match, ...], ...]:
    match inet:
        case Ports():
            protocol = Protocol(inet.protocol)
            ranges = tuple(PortRange(low, high) for low, high in inet.intervals)
            if inet.negated and len(ranges) > 1:
                from istio_init.model.extensions import Multiport

                return ((protocol, Multiport("sports" if inet.side == "sport" else "dports", ranges, negated=True)),)
            kind = SourcePorts if inet.side == "sport" else DestinationPorts
            return tuple((protocol, kind(each, inet.negated)) for each in ranges)
        case Addresses():
            blocks = [Network(each, inet.prefix) for each in sorted(inet.networks)]
            blocks += [network for each in inet.intervals for network in networks(each, family)]
            side = Source if inet.side == "saddr" else Destination
            if inet.negated:
                return (tuple(side(network, negated=True) for network in blocks),)
            return tuple((side(network),) for network in blocks)
        case _:
            return ((inet,),)
