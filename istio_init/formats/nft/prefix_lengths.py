"""Rules with long lists of networks: one for each prefix length that many of them have, and one for all others.

Loaded only where a list is long. model.inet.content() says why.
"""

from __future__ import annotations

from istio_init.formats.nft.merge import expanded, with_match
from istio_init.model.inet import LONGEST_IN_RULE, Addresses, interval, merged
from istio_init.model.rules import Destination, Network, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_init.formats.nft.merge import Folded
    from istio_init.model.inet import InetRule, Interval
    from istio_init.model.rules import Rule

# How many lengths have a rule of their own: to a packet that meets all of these, they cost as much as one large tree.
MOST_LENGTHS = 8


def split(
    rule: InetRule, at: int, intervals: Sequence[Interval], lists: Iterable[tuple[Network, ...]]
) -> list[InetRule]:
    """The rule for all these networks: for each length that many have, longest prefixes first, and for the rest.

    `at` is where its addresses are. Each of the intervals is one network, too.
    """
    match = rule.matches[at]
    networks = _by_length(intervals, lists, 32 if rule.family == "ipv4" else 128)
    many = [prefix for prefix, addresses in networks.items() if len(addresses) > LONGEST_IN_RULE]
    many.sort(key=lambda prefix: (-len(networks[prefix]), -prefix))
    own = sorted(many[:MOST_LENGTHS], reverse=True)
    matches = [match.replace(intervals=(), networks=networks.pop(prefix), prefix=prefix) for prefix in own]
    if networks:
        matches.append(match.replace(intervals=merged(_intervals(networks))))
    return [with_match(rule, at, each) for each in matches]


def _by_length(
    intervals: Iterable[Interval], lists: Iterable[tuple[Network, ...]], bits: int
) -> dict[int, frozenset[bytes]]:
    """The first addresses of all networks by prefix length."""
    addresses: dict[int, list[bytes]] = {}
    for networks in lists:
        prefixes = {network.prefix for network in networks}
        take = {prefix: addresses.setdefault(prefix, []).append for prefix in prefixes}
        if len(take) == 1:
            addresses[networks[0].prefix] += [network.address for network in networks]
            continue
        for network in networks:
            take[network.prefix](network.address)
    for low, high in intervals:
        prefix = bits - (high - low).bit_length()
        addresses.setdefault(prefix, []).append(low.to_bytes(bits // 8, "big"))
    return {prefix: frozenset(each) for prefix, each in addresses.items()}


def _intervals(networks: dict[int, frozenset[bytes]]) -> list[Interval]:
    return [interval(Network(each, prefix)) for prefix, addresses in networks.items() for each in addresses]


def of_one(rule: InetRule, siblings: Sequence[InetRule], sources: Iterable[Rule]) -> Iterator[Rule]:
    """Of the rules that all siblings, which split() made, were made of, those that one of them was made of."""
    at = _position(siblings)
    own = {_addresses(each, at).prefix for each in siblings if _addresses(each, at).networks}
    match = _addresses(rule, at)
    kind = Source if match.side == "saddr" else Destination
    for source in sources:
        prefix = next(each.network.prefix for each in source.matches if isinstance(each, kind) and not each.negated)
        if prefix == match.prefix if match.networks else prefix not in own:
            yield source


def as_one_rule(folded: Folded) -> Iterator[tuple[InetRule, tuple[Rule, ...]]]:
    """Each rule with one set of intervals that earlier releases wrote instead, and the rules it was made of."""
    groups: dict[int, list[InetRule]] = {}
    for rule, parts in zip(folded.rules, folded.parts, strict=True):
        groups.setdefault(id(parts), []).append(rule)
    for parts in {id(each): each for each in folded.parts}.values():
        siblings = groups[id(parts)]
        if len(siblings) > 1 or any(isinstance(match, Addresses) and match.networks for match in siblings[0].matches):
            yield _whole(siblings), tuple(expanded(parts))


def _whole(siblings: Sequence[InetRule]) -> InetRule:
    at = _position(siblings)
    matches = [_addresses(rule, at) for rule in siblings]
    spans = [each for match in matches for each in (*match.intervals, *_intervals({match.prefix: match.networks}))]
    return with_match(siblings[0], at, matches[0].replace(intervals=merged(spans), networks=frozenset(), prefix=0))


def _position(siblings: Sequence[InetRule]) -> int:
    """Where the rules that split() made have different addresses."""
    first = siblings[0].matches
    return next(at for at, match in enumerate(first) if isinstance(match, Addresses) and match.networks)


def _addresses(rule: InetRule, at: int) -> Addresses:
    return rule.matches[at]  # type: ignore[return-value]  # split() has put it there
