"""Tables of nftables' inet family as values: what is there for rulesets of both families. No I/O.

Names and priorities are those of Istio's own nftables mode (tools/istio-nftables): a table each for nat, mangle
and raw, chains in lower case with dashes. A packet of either family is treated as its ruleset says:

- Rules that differ only in a port or a CIDR become one rule with a set, its intervals merged (formats/nft/merge.py).
- A rule that both families have exists once; one with addresses exists once for each family; any other that
  one family alone has compares the family first (formats/nft/layout.py).
- In a table of one family, the base chains begin with a rule that returns the other family's packets.
- Where iptables' TPROXY finds no listener it drops the packet, nftables' tproxy passes it on to the application,
  uncaptured: a rule that drops it follows.

One difference remains: `! --uid-owner` (and gid) holds for packets that have no socket or the kernel's, `meta
skuid !=` does not. formats/nft/listing.py spells them, kernel/nft/native_encode.py writes them.
"""

from __future__ import annotations

from istio_init.model.rules import IPV4, OWN_CHAINS, InInterface, Network, OutInterface, Owner, Protocol
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal, TypeAlias

    from istio_init.model.extensions import ConnMark, CtState, Mark
    from istio_init.model.rules import Family, Hook, TableName, Target
    from istio_init.model.unknown import UnknownMatch

    # First and last, both included: ports, or addresses as numbers.
    Interval: TypeAlias = tuple[int, int]
    # What a set holds: intervals, or the first addresses of networks of one length.
    Content: TypeAlias = tuple[Interval, ...] | frozenset[bytes]
    # The names of a table's sets, by the type of their elements and what they hold.
    Sets: TypeAlias = Mapping[tuple[str, Content], str]

# By table: its name, and by hook the type and the priority of the base chain.
NAMES: dict[TableName, str] = {"raw": "istio-proxy-raw", "mangle": "istio-proxy-mangle", "nat": "istio-proxy-nat"}
BASE_CHAINS: dict[TableName, dict[Hook, tuple[str, int]]] = {
    "raw": {"PREROUTING": ("filter", -300), "OUTPUT": ("filter", -300)},
    # The type route looks for a new route where a mark has changed, as iptables' mangle does.
    "mangle": {"PREROUTING": ("filter", -150), "OUTPUT": ("route", -150)},
    "nat": {"PREROUTING": ("nat", -100), "OUTPUT": ("nat", -100)},
}
_TO_NFT = {name: name.lower().replace("_", "-") for name in (*OWN_CHAINS, "PREROUTING", "OUTPUT")}
_FROM_NFT = {nft: chain for chain, nft in _TO_NFT.items()}

# How many intervals a rule bears itself; more make a set with a name.
LONGEST_IN_RULE = 32
_SET_NAMES = {"inet_service": "ports", "ipv4_addr": "ipv4", "ipv6_addr": "ipv6"}


class Ports(Record):
    """`tcp dport { 80, 8080-8090 }`: intervals ascending and apart; `side` is sport or dport."""

    protocol: int
    side: Literal["sport", "dport"]
    intervals: tuple[Interval, ...]
    negated: bool = False


class Addresses(Record):
    """`ip daddr { 10.0.0.0/8, ... }`: intervals ascending and apart, of the rule's family; `side` is saddr or daddr.

    Instead of intervals, `networks` are the first addresses of many networks that all have the same `prefix` length.
    """

    side: Literal["saddr", "daddr"]
    intervals: tuple[Interval, ...]
    negated: bool = False
    networks: frozenset[bytes] = frozenset()
    prefix: int = 0


if TYPE_CHECKING:
    InetMatch: TypeAlias = (
        InInterface | OutInterface | Addresses | Protocol | Ports | Owner | Mark | ConnMark | CtState | UnknownMatch
    )


class InetRule(Record):
    """One rule of an inet table, for packets of `family`, or of both where it is None. Jumps bear iptables' names."""

    matches: tuple[InetMatch, ...]
    target: Target
    family: Family | None = None
    comment: str = ""


class InetChain(Record):
    """A chain by iptables' name; a built-in one is a base chain."""

    name: str
    rules: tuple[InetRule, ...]


class InetTable(Record):
    """The inet table for a table of iptables: base chains first, then user-defined chains by name."""

    name: TableName
    chains: tuple[InetChain, ...]


def chain_name(name: str) -> str:
    """A chain's name in nftables; other programs' names are unchanged."""
    return _TO_NFT.get(name, name)


def iptables_name(name: str) -> str:
    """A chain's name in iptables."""
    return _FROM_NFT.get(name, name)


def merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The same numbers in as few intervals as can be, ascending."""
    ordered = tuple(sorted(intervals))
    # Those of a long list mostly are apart, which is found out faster than they are merged one by one.
    if len(ordered) > LONGEST_IN_RULE and are_apart(*zip(*ordered, strict=True)):
        return ordered
    result: list[Interval] = []
    behind = -1  # what would continue the last one
    for each in ordered:
        if each[0] > behind:
            result.append(each)
            behind = each[1] + 1
        elif each[1] >= behind:
            result[-1] = result[-1][0], each[1]
            behind = each[1] + 1
    return tuple(result)


def are_apart(lows: Sequence[int], highs: Sequence[int]) -> bool:
    """Whether of intervals, by their first and last numbers, each begins more than one behind the end of the last."""
    return all(map(int.__lt__, [high + 1 for high in highs], lows[1:]))


def networks(interval: Interval, family: Family) -> tuple[Network, ...]:
    """The networks that an interval of addresses consists of, as few as can be, ascending."""
    bits = 32 if family == IPV4 else 128
    low, high = interval
    result = []
    while low <= high:
        # The largest block that begins at `low`, is aligned, and ends in time.
        aligned = (low & -low).bit_length() - 1 if low else bits
        size = min(aligned, (high - low + 1).bit_length() - 1)
        result.append(Network(low.to_bytes(bits // 8, "big"), bits - size))
        low += 1 << size
    return tuple(result)


def prefix_length(interval: Interval, family: Family) -> int | None:
    """The prefix length of the network that an interval of addresses is, None where it is not one network."""
    low, high = interval
    hosts = low ^ high
    # One network has ends that differ in all of the last bits and in no other, and begins with these at zero.
    if hosts & (hosts + 1) or low & hosts:
        return None
    return (32 if family == IPV4 else 128) - hosts.bit_length()


def netmask(prefix: int, size: int) -> bytes:
    """The first bits of an address of so many bytes."""
    return ((1 << 8 * size) - (1 << 8 * size - prefix)).to_bytes(size, "big")


def interval(network: Network) -> Interval:
    """A network's first and last address."""
    hosts = len(network.address) * 8 - network.prefix
    low = int.from_bytes(network.address, "big") >> hosts << hosts
    return low, low + (1 << hosts) - 1


def needs_family_match(rule: InetRule) -> bool:
    """Whether a rule has to compare the packet's family."""
    return rule.family is not None and not any(isinstance(match, Addresses) for match in rule.matches)


def content(match: Ports | Addresses) -> Content:
    """What a set for this match holds.

    Of intervals the kernel makes a tree. Networks of one length are a hash table, in which the packet's address is
    looked up without its last bits: it is filled and dumped in a fraction of the time. Ports are intervals, even if
    each is one by itself: of single ports the kernel makes a bitmap, which takes a second to fill.
    """
    return match.networks or match.intervals if isinstance(match, Addresses) else match.intervals


def sets(table: InetTable) -> dict[tuple[str, Content], str]:
    """The names of the sets that a table has for its longer lists, by the type of their elements and what they hold.

    A short list is in its rule. A long one has a name, and serves every rule with the same elements.
    """
    named: dict[tuple[str, Content], str] = {}
    for chain in table.chains:
        for rule in chain.rules:
            for match in rule.matches:
                if isinstance(match, Ports | Addresses) and not 0 < len(match.intervals) <= LONGEST_IN_RULE:
                    kind = element_type(match, rule)
                    held = kind, content(match)
                    # Compared, and not looked up: hashing 10,000 intervals takes as long as making them.
                    if not any(held == other for other in named):
                        count = sum(1 for other, _ in named if other == kind)
                        named[held] = f"{_SET_NAMES[kind]}-{count + 1}"
    return named


def element_type(match: Ports | Addresses, rule: InetRule) -> str:
    """What a set of ports or addresses consists of, in nftables' words."""
    if isinstance(match, Ports):
        return "inet_service"
    return "ipv4_addr" if rule.family == IPV4 else "ipv6_addr"
