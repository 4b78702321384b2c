"""One rule of iptables in nftables' terms."""

from __future__ import annotations

from istio_init.model.inet import Addresses, InetRule, Ports, interval, merged
from istio_init.model.rules import (
    IPV4,
    Destination,
    DestinationPorts,
    InInterface,
    OutInterface,
    Owner,
    Protocol,
    Source,
    SourcePorts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from istio_init.model.extensions import Multiport
    from istio_init.model.inet import InetMatch
    from istio_init.model.rules import Family, Match, PortRange, Rule

# Of a rule's comment, in bytes: NFTNL_UDATA_COMMENT_MAXLEN.
LONGEST_COMMENT = 128

# The order of a rule's matches in nftables, cheap ones first, by the names of their classes: a plain plan has none of
# the rarer kinds, and does not load them.
_NFT_ORDER = (
    *("InInterface", "OutInterface", "Addresses", "Protocol", "Ports", "Owner"),
    *("Mark", "ConnMark", "CtState", "UnknownMatch"),
)
_NFT_RANK = {kind: rank for rank, kind in enumerate(_NFT_ORDER)}


def inet_rule(rule: Rule, family: Family) -> InetRule:
    """A rule of a family. InitError for what nftables, or this module, can't express."""
    comment = _comment(rule)
    conditions = rule.replace(matches=rule.matches[:-1]) if comment else rule
    return InetRule(_inet_matches(conditions, family), rule.target, family, comment)


def _inet_matches(rule: Rule, family: Family) -> tuple[InetMatch, ...]:
    protocol = next((match.number for match in rule.matches if isinstance(match, Protocol) and not match.negated), 0)
    matches = [inet_match for match in rule.matches if (inet_match := _inet_match(match, protocol)) is not None]
    if any(isinstance(each, Ports) for each in matches):
        matches = [each for each in matches if not isinstance(each, Protocol)]
    if any(
        isinstance(each, Addresses) and each.intervals[-1][1] >> (32 if family == IPV4 else 128) for each in matches
    ):
        from istio_init.formats.nft.rare_match import inexpressible

        raise inexpressible(rule, f"an address that is not one of {family}")
    if len(matches) > 1:
        matches.sort(key=lambda each: _NFT_RANK[type(each).__name__])
    return tuple(matches)


def _comment(rule: Rule) -> str:
    """The comment behind a rule's other matches. Few plans have any, so its class is not loaded."""
    last = rule.matches[-1] if rule.matches else None
    if type(last).__name__ != "Comment":
        return ""
    text: str = last.text  # type: ignore[union-attr]
    if len(text.encode(errors="surrogateescape")) > LONGEST_COMMENT or '"' in text:
        from istio_init.formats.nft.rare_match import inexpressible

        raise inexpressible(last, f"a comment of more than {LONGEST_COMMENT} bytes, or with quotation marks,")
    return text


def _inet_match(match: Match, protocol: int) -> InetMatch | None:
    """A match in nftables' terms; None if it matches every packet."""
    match match:
        case DestinationPorts():
            return ports(protocol, "dport", (match.ports,), match)
        case SourcePorts():
            return ports(protocol, "sport", (match.ports,), match)
        case Source() | Destination():
            side: Literal["saddr", "daddr"] = "saddr" if isinstance(match, Source) else "daddr"
            return Addresses(side, (interval(match.network),), match.negated)
        case Protocol():
            return match if match.number else None
        case InInterface() | OutInterface():
            return _interface(match)
        case Owner():
            return match
        case _:
            from istio_init.formats.nft.rare_match import rare_match

            return rare_match(match, protocol)


def _interface(match: InInterface | OutInterface) -> InetMatch:
    # For nft an asterisk behind a backslash is no wildcard, and nothing says that the backslash is meant.
    if match.name.endswith(("\\+", "\\*")):
        flag = "-i" if isinstance(match, InInterface) else "-o"
        from istio_init.formats.nft.rare_match import inexpressible

        raise inexpressible(f"{flag} {match.name}", "an interface's name with a backslash before its last + or *")
    return match


def ports(
    protocol: int,
    side: Literal["sport", "dport"],
    ranges: tuple[PortRange, ...],
    match: SourcePorts | DestinationPorts | Multiport,
) -> Ports:
    """A match on a port of one side; `match` is what it is made of."""
    if not protocol:
        from istio_init.formats.nft.rare_match import inexpressible

        raise inexpressible(match, "a port without a protocol")
    if len(ranges) == 1:
        return Ports(protocol, side, ((ranges[0].low, ranges[0].high),), match.negated)
    return Ports(protocol, side, merged((each.low, each.high) for each in ranges), match.negated)
