"""Rules as nftables has them, those that differ in one port or network alone made one with a set, and back."""

from __future__ import annotations

from istio_init.errors import InitError, shown
from istio_init.model.inet import LONGEST_IN_RULE, Addresses, InetRule, Ports, interval, merged, networks
from istio_init.model.rules import (
    IPV4,
    Destination,
    DestinationPorts,
    InInterface,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Rule,
    Run,
    Source,
    SourcePorts,
)
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Literal, TypeAlias

    from istio_init.model.extensions import ConnMark, CtState, Mark, Multiport
    from istio_init.model.inet import InetMatch, Interval
    from istio_init.model.rules import Family, Match
    from istio_init.model.unknown import Comment, UnknownMatch

    # The kinds of a rule's matches, without their values.
    Shape: TypeAlias = tuple[object, ...]


# Of a rule's comment, in bytes: NFTNL_UDATA_COMMENT_MAXLEN.
LONGEST_COMMENT = 128


class _Group:
    """Rules that are one but for the value of the match at `at`; `sources` are they, long lists of them as runs."""

    def __init__(self, first: InetRule, shape: Shape, source: Rule, *, has_kin: bool) -> None:
        self.first = first
        self.shape = shape
        self.protocol = _protocol(first)
        self.sources: list[Rule | Run] = [source]
        self.has_kin = has_kin  # an earlier group that may take what this one would
        self.at = -1
        self.intervals: list[Interval] = []
        self.networks: list[tuple[Network, ...]] = []  # long lists, beside the intervals
        self.ports: set[int] | None = None

    def continues(self, source: Rule) -> bool:
        """Join a rule that differs from the last one plainly in a port or a network: what long lists consist of."""
        last = self.sources[-1]
        if self.at < 0 or self.has_kin or self.ports is not None or isinstance(last, Run):
            return False
        if source.target is not last.target:
            return False
        different = [(one, other) for one, other in zip(last.matches, source.matches, strict=False) if one is not other]
        if len(different) != 1 or len(last.matches) != len(source.matches):
            return False
        one, other = different[0]
        varies = self.first.matches[self.at]
        if type(one) is not type(other) or not isinstance(varies, Ports | Addresses):
            return False
        match other:
            case DestinationPorts() | SourcePorts() if varies.side == _SIDES[type(other)] and not other.negated:
                self.intervals.append((other.ports.low, other.ports.high))
            case Destination() | Source() if varies.side == _SIDES[type(other)] and not other.negated:
                self.intervals.append(interval(other.network))
            case _:
                return False
        self.sources.append(source)
        return True

    def akin(self, rule: InetRule, shape: Shape) -> bool:
        """Whether the rule has the same matches, of any values, and the same target."""
        return self.shape == shape and self.first.target == rule.target and self.first.comment == rule.comment

    def fits(self, rule: InetRule, shape: Shape) -> bool:
        """Whether the rule belongs here: it differs at most in the one value that this group's rules differ in."""
        if not self.akin(rule, shape):
            return False
        varying = self._varying(rule)
        return not varying or (len(varying) == 1 and _widens(*varying[0][1:]))

    def _varying(self, rule: InetRule) -> list[tuple[int, InetMatch, InetMatch]]:
        """The positions at which the rule differs from this group's first rule, or its others do, with both matches."""
        pairs = enumerate(zip(self.first.matches, rule.matches, strict=True))
        return [(at, one, other) for at, (one, other) in pairs if at == self.at or one != other]

    def join(self, rule: InetRule, source: Rule) -> None:
        """Take a rule that fits."""
        self.sources.append(source)
        for at, one, other in self._varying(rule):
            if isinstance(one, Ports | Addresses) and isinstance(other, Ports | Addresses):
                if self.at < 0:
                    self.at, self.intervals = at, list(one.intervals)
                self.intervals += other.intervals
            if self.ports is not None:
                self.ports.update(_numbers(other))

    def extend(self, run: Run) -> None:
        """Take rules that fit, and differ in the value alone that this group's rules do."""
        self.sources.append(run)
        if isinstance(run.values[0], PortRange):
            self.intervals += [(each.low, each.high) for each in run.values]
            self.ports = None  # to be counted anew
        else:
            self.networks.append(run.values)

    def stays_apart(self, rule: InetRule) -> bool:
        """Whether `rule` may be taken before this group: no packet meets both, or both do the same to it."""
        if self.first.target == rule.target:
            return True
        if self.protocol and (protocol := _protocol(rule)) and self.protocol != protocol:
            return True
        return any(
            isinstance(other, Ports) and not other.negated and self._other_ports(number, other)
            for number, other in enumerate(rule.matches)
        )

    def _other_ports(self, number: int, other: Ports) -> bool:
        one = self.first.matches[number] if number < len(self.first.matches) else None
        if not isinstance(one, Ports) or one.negated or (one.protocol, one.side) != (other.protocol, other.side):
            return False
        if self.at not in {-1, number}:
            return False
        if self.ports is None:
            self.ports = _numbers(one)
            for low, high in self.intervals:
                self.ports.update(range(low, high + 1))
        return all(self.ports.isdisjoint(range(low, high + 1)) for low, high in other.intervals)

    def rules(self) -> list[InetRule]:
        """The one rule that does what all of them do; one for each length of networks that are many."""
        if self.at < 0:
            return [self.first]
        match = self.first.matches[self.at]
        if isinstance(match, Addresses) and (self.networks or len(self.intervals) > LONGEST_IN_RULE):
            from istio_init.formats.nft.prefix_lengths import split

            return split(self.first, self.at, self.intervals, self.networks)
        return [with_match(self.first, self.at, match.replace(intervals=merged(self.intervals)))]


def with_match(rule: InetRule, at: int, match: InetMatch) -> InetRule:
    """The rule with another match at a position."""
    return rule.replace(matches=(*rule.matches[:at], match, *rule.matches[at + 1 :]))


_SIDES = {DestinationPorts: "dport", SourcePorts: "sport", Destination: "daddr", Source: "saddr"}


def _shape(rule: InetRule) -> Shape:
    """The kinds of a rule's matches, without their values."""
    return tuple([_kind(match) for match in rule.matches])


def _kind(match: InetMatch) -> object:
    match match:
        case Ports():
            return match.protocol, match.side
        case Addresses():
            return match.side
        case _:
            return type(match)


def _widens(one: InetMatch, other: InetMatch) -> bool:
    """Whether one match can have the values of both."""
    match one, other:
        case (Ports(), Ports()):
            return (one.protocol, one.side, one.negated, other.negated) == (other.protocol, other.side, False, False)
        case (Addresses(), Addresses()):
            return (one.side, one.negated, other.negated) == (other.side, False, False)
        case _:
            return False


def _numbers(ports: InetMatch) -> set[int]:
    spans = ports.intervals if isinstance(ports, Ports) else ()
    return {port for low, high in spans for port in range(low, high + 1)}


def _protocol(rule: InetRule) -> int:
    """The protocol that a rule is about; 0 for any."""
    for match in rule.matches:
        if isinstance(match, Ports):
            return match.protocol
        if isinstance(match, Protocol) and not match.negated:
            return match.number

    return 0


class Folded(Record):
    """A chain of one family as it is in nftables; `parts[n]` are the rules that `rules[n]` is made of.

    Rules that were one but for the lengths of their networks have the same `parts`, which are all of theirs.
    """

    rules: tuple[InetRule, ...]
    parts: tuple[tuple[Rule | Run, ...], ...]

    def sources(self, number: int) -> Iterator[Rule]:
        """The rules that one is made of."""
        every = expanded(self.parts[number])
        siblings = [rule for rule, parts in zip(self.rules, self.parts, strict=True) if parts is self.parts[number]]
        if len(siblings) == 1:
            return every
        from istio_init.formats.nft.prefix_lengths import of_one

        return of_one(self.rules[number], siblings, every)


def expanded(parts: Iterable[Rule | Run]) -> Iterator[Rule]:
    """The parts' rules."""
    for part in parts:
        yield from part.rules() if isinstance(part, Run) else (part,)


def fold(parts: Sequence[Rule | Run], family: Family) -> Folded:
    """A chain's rules (Chain.parts), those that differ in one port or network alone made one.

    A rule joins an earlier one across others only if that changes no packet's path: no packet matches both, or
    both have the same target. InitError for what nftables, or this module, can't express.
    """
    groups: list[_Group] = []
    for part in parts:
        if isinstance(part, Run):
            _take_run(groups, part, family)
        else:
            _take(groups, part, family)
    rules: list[InetRule] = []
    sources: list[tuple[Rule | Run, ...]] = []
    for group in groups:
        theirs = group.rules()
        rules += theirs
        sources += [tuple(group.sources)] * len(theirs)
    return Folded(tuple(rules), tuple(sources))


def _take(groups: list[_Group], source: Rule, family: Family) -> _Group:
    """Put one more rule into a group, an earlier one or its own; returns that."""
    if groups and groups[-1].continues(source):
        return groups[-1]
    comment = _comment(source)
    conditions = source.replace(matches=source.matches[:-1]) if comment else source
    rule = InetRule(_inet_matches(conditions, family), source.target, family, comment)
    shape = _shape(rule)
    home = _home(groups, rule, shape)
    if home is None:
        home = _Group(rule, shape, source, has_kin=any(group.akin(rule, shape) for group in groups))
        groups.append(home)
    else:
        home.join(rule, source)
    return home


def _take_run(groups: list[_Group], run: Run, family: Family) -> None:
    """Put the rules of a run into groups: where the first two of each go, all go, if nothing can keep them from it."""
    homes = [_take(groups, rule, family) for rule in Run(run.unit, run.values[:2]).rules()][-len(run.unit) :]
    rest = run.values[2:]
    if not rest:
        return
    if run.values[0] != run.values[1] and _all_go(groups, homes):
        for rule, home in zip(run.unit, homes, strict=True):
            home.extend(Run((rule,), rest))
        return
    for rule in Run(run.unit, rest).rules():
        _take(groups, rule, family)


def _all_go(groups: list[_Group], homes: list[_Group]) -> bool:
    """Whether rules go to these groups whatever their values are: no other takes them, and none is in their way."""
    if len(set(homes)) < len(homes) or any(home.at < 0 or home.has_kin for home in homes):
        return False
    behind = groups[min(map(groups.index, homes)) :]
    return all(group.first.target == homes[0].first.target for group in behind)


def _home(groups: list[_Group], rule: InetRule, shape: Shape) -> _Group | None:
    """The first group that the rule may join; folded groups are not changed."""
    home = None
    for group in reversed(groups):
        if group.fits(rule, shape):
            home = group
        elif not group.stays_apart(rule):
            break
    return home


# The order of a rule's matches in nftables, cheap ones first, and in iptables, by the names of their classes: a plain
# plan has none of the rarer kinds, and does not load them.
_NFT_ORDER = (
    *("InInterface", "OutInterface", "Addresses", "Protocol", "Ports", "Owner"),
    *("Mark", "ConnMark", "CtState", "UnknownMatch"),
)
_NFT_RANK = {kind: rank for rank, kind in enumerate(_NFT_ORDER)}
_IPTABLES_ORDER = (
    *("Source", "Destination", "InInterface", "OutInterface", "Protocol", "SourcePorts", "DestinationPorts"),
    *("Multiport", "Owner", "Mark", "ConnMark", "CtState", "UnknownMatch"),
)
_IPTABLES_RANK = {kind: rank for rank, kind in enumerate(_IPTABLES_ORDER)}


def _inet_matches(rule: Rule, family: Family) -> tuple[InetMatch, ...]:
    protocol = next((match.number for match in rule.matches if isinstance(match, Protocol) and not match.negated), 0)
    matches = [inet_match for match in rule.matches if (inet_match := _inet_match(match, protocol)) is not None]
    if any(isinstance(each, Ports) for each in matches):
        matches = [each for each in matches if not isinstance(each, Protocol)]
    if any(
        isinstance(each, Addresses) and each.intervals[-1][1] >> (32 if family == IPV4 else 128) for each in matches
    ):
        raise _inexpressible(rule, f"an address that is not one of {family}")
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
        raise _inexpressible(last, f"a comment of more than {LONGEST_COMMENT} bytes, or with quotation marks,")
    return text


def _inet_match(match: Match, protocol: int) -> InetMatch | None:
    """A match in nftables' terms; None if it matches every packet."""
    match match:
        case DestinationPorts():
            return _ports(protocol, "dport", (match.ports,), match)
        case SourcePorts():
            return _ports(protocol, "sport", (match.ports,), match)
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
            return _rare(match, protocol)


def _rare(match: Multiport | Mark | ConnMark | CtState | Comment | UnknownMatch, protocol: int) -> InetMatch:
    from istio_init.model.extensions import ConnMark, CtState, Mark, Multiport

    if isinstance(match, Multiport):
        if match.side == "ports":
            raise _inexpressible(match, "a match on either side's port")
        return _ports(protocol, "sport" if match.side == "sports" else "dport", match.ports, match)
    if isinstance(match, CtState) and (match.negated or not match.states or {"SNAT", "DNAT"} & set(match.states)):
        raise _inexpressible(match, "this match on the connection's state")
    if isinstance(match, Mark | ConnMark | CtState):
        return match
    from istio_init.model.unknown import UnknownMatch

    if isinstance(match, UnknownMatch):
        return match
    raise _inexpressible(match, "a comment before other matches")


def _interface(match: InInterface | OutInterface) -> InetMatch:
    # For nft an asterisk behind a backslash is no wildcard, and nothing says that the backslash is meant.
    if match.name.endswith(("\\+", "\\*")):
        flag = "-i" if isinstance(match, InInterface) else "-o"
        raise _inexpressible(f"{flag} {match.name}", "an interface's name with a backslash before its last + or *")
    return match


def _ports(
    protocol: int,
    side: Literal["sport", "dport"],
    ranges: tuple[PortRange, ...],
    match: SourcePorts | DestinationPorts | Multiport,
) -> Ports:
    if not protocol:
        raise _inexpressible(match, "a port without a protocol")
    if len(ranges) == 1:
        return Ports(protocol, side, ((ranges[0].low, ranges[0].high),), match.negated)
    return Ports(protocol, side, merged((each.low, each.high) for each in ranges), match.negated)


def _inexpressible(value: object, what: str) -> InitError:
    text = value if isinstance(value, str) else repr(value)
    return InitError(f"--native-nftables: {shown(text)}: {what} has no form there; leave the flag out")


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
