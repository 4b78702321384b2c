"""Rules as nftables has them, those that differ in one port or network alone made one with a set.

unfold.py makes rules of iptables of them again.
"""

from __future__ import annotations

from istio_init.formats.nft.inet_rule import inet_rule
from istio_init.model.inet import LONGEST_IN_RULE, Addresses, InetRule, Ports, interval, merged
from istio_init.model.rules import Destination, DestinationPorts, Protocol, Run, Source, SourcePorts
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, TypeAlias

    from istio_init.model.inet import InetMatch, Interval
    from istio_init.model.rules import Family, Network, PortRange, Rule

    # The kinds of a rule's matches, without their values.
    Shape: TypeAlias = tuple[object, ...]
    # What a group's intervals are merged from: those that it has by itself, and the identities of its long lists.
    Merged: TypeAlias = tuple[tuple[Interval, ...], tuple[int, ...]]


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
        self.lists: list[tuple[Network, ...] | tuple[PortRange, ...]] = []  # long ones, beside the intervals
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
        self.lists.append(run.values)
        self.ports = None  # to be counted anew

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
            for low, high in self._ranges():
                self.ports.update(range(low, high + 1))
        return all(self.ports.isdisjoint(range(low, high + 1)) for low, high in other.intervals)

    def _ranges(self) -> Iterable[Interval]:
        """All intervals of ports."""
        lists: Any = self.lists
        lows = [low for low, _ in self.intervals]
        highs = [high for _, high in self.intervals]
        for values in lists:
            lows += [each.low for each in values]
            highs += [each.high for each in values]
        return zip(lows, highs, strict=True)

    def rules(self, interval_cache: dict[Merged, tuple[Interval, ...]]) -> list[InetRule]:
        """The one rule that does what all of them do; one for each length of networks that are many.

        `interval_cache` is for the intervals that groups with the same lists have in common: TCP and UDP ports, mostly.
        """
        if self.at < 0:
            return [self.first]
        match = self.first.matches[self.at]
        lists: Any = self.lists  # of networks where the match is on addresses
        if isinstance(match, Addresses) and (lists or len(self.intervals) > LONGEST_IN_RULE):
            from istio_init.formats.nft.prefix_lengths import split

            return split(self.first, self.at, self.intervals, lists)
        key = tuple(self.intervals), tuple(map(id, self.lists))
        if key not in interval_cache:
            interval_cache[key] = merged(self._ranges())
        return [with_match(self.first, self.at, match.replace(intervals=interval_cache[key]))]


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
    interval_cache: dict[Merged, tuple[Interval, ...]] = {}
    for group in groups:
        theirs = group.rules(interval_cache)
        rules += theirs
        sources += [tuple(group.sources)] * len(theirs)
    return Folded(tuple(rules), tuple(sources))


def _take(groups: list[_Group], source: Rule, family: Family) -> _Group:
    """Put one more rule into a group, an earlier one or its own; returns that."""
    if groups and groups[-1].continues(source):
        return groups[-1]
    rule = inet_rule(source, family)
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
