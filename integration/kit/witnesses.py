"""What the kernel saw of a packet, whichever backend wrote the rules: which it met, in order, and their counters.

A witness speaks of places as the kernel has them, and translates what the simulator says into these: where rules of
native nftables stand for several, a step through any of them is one through the rule that holds it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from integration.kit.rule_counters import RuleCounters
from integration.kit.rule_traces import SYSCTLS, LegacyTrace, NftTrace
from istio_init.formats.nft.layout import layout, stored
from istio_init.formats.nft.merge import fold
from istio_init.model.extensions import Tproxy
from istio_init.model.inet import NAMES, InetRule, InetTable, chain_name
from istio_init.model.rules import FAMILIES
from istio_init.simulate.trace import HOOKS
from istio_init.simulate.trace_steps import ChainEnd, RuleStep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from integration.kit.namespace import Namespace
    from integration.kit.rule_counters import Place
    from istio_init.model.rules import Chain, Family, Ruleset, TableName
    from istio_init.simulate.trace_steps import Trace

WORDS: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}


class Counted(NamedTuple):
    """A rule, or with the number behind the last one's a chain's end, that counts packets."""

    family: str
    place: Place


class Witness(Protocol):
    """The kernel's word on what packets met, in one namespace; `look_again` after each change of the rules."""

    def look_again(self, rules: Mapping[Family, Ruleset]) -> None:
        """Learn where the rules are, which are these, now that the tables were written."""

    def met(self) -> list[Place]:
        """What the packets since the last time met, in order."""

    def expected(self, traces: Sequence[Trace], family: Family) -> list[Place]:
        """The same as the simulator has it."""

    def counters(self) -> Counter[Counted]:
        """How many packets each rule has counted."""

    def counting(self, places: Sequence[Place], family: Family) -> Iterator[Counted]:
        """Of the places that a packet met, those that have a counter."""

    def close(self) -> None:
        """Stop listening."""


def _places(met: Trace, rules: Ruleset) -> Iterator[tuple[RuleStep | ChainEnd, Place]]:
    """The rules that a packet met at a hook, and the ends of chains, in the simulator's numbers."""
    for step in met.steps:
        if isinstance(step, RuleStep) and step.matched:
            yield step, (step.table, step.chain, step.number)
        elif isinstance(step, ChainEnd):
            name = met.hook if step.policy else step.chain
            table = rules.table(step.table)
            chain = table.chain(name) if table else None
            assert chain
            yield step, (step.table, name, len(chain.rules) + 1)


class LegacyWitness:
    """See Witness. Ends of chains are entries that count, too."""

    def __init__(self, namespace: Namespace) -> None:
        namespace.run("sysctl", "-q", "-w", *SYSCTLS)
        self._namespace = namespace
        self._trace = namespace.inside(LegacyTrace)
        self._counters: dict[Family, RuleCounters] = {}

    def look_again(self, rules: Mapping[Family, Ruleset]) -> None:
        """See Witness."""
        self._forget()
        self._rules = rules
        self._counters = {family: self._namespace.inside(partial(RuleCounters, family)) for family in FAMILIES}

    def met(self) -> list[Place]:
        """See Witness."""
        return list(self._trace.read())

    def expected(self, traces: Sequence[Trace], family: Family) -> list[Place]:
        """See Witness."""
        return [place for met in traces for _, place in _places(met, self._rules[family])]

    def counters(self) -> Counter[Counted]:
        """See Witness."""
        read = ((WORDS[family], each.read()) for family, each in self._counters.items())
        return Counter({Counted(word, place): count for word, result in read for place, count in result.items()})

    def counting(self, places: Sequence[Place], family: Family) -> Iterator[Counted]:
        """See Witness."""
        return (Counted(WORDS[family], place) for place in places)

    def _forget(self) -> None:
        for each in self._counters.values():
            each.close()

    def close(self) -> None:
        """See Witness."""
        self._forget()
        self._trace.close()


class Listing:
    """The rules of a namespace as `nft` lists them: where each handle is, and what its counter says."""

    def __init__(self, namespace: Namespace) -> None:
        self.places: dict[tuple[str, str, int], Place] = {}
        self.lengths: Counter[tuple[str, str, str]] = Counter()
        self.chains: set[tuple[str, str, str]] = set()
        self.counters: Counter[Counted] = Counter()
        for item in json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]:
            if "chain" in item:
                self.chains.add((item["chain"]["family"], item["chain"]["table"], item["chain"]["name"]))
            elif "rule" in item:
                self._take(item["rule"])

    def _take(self, rule: dict[str, object]) -> None:
        family, table, chain = (str(rule[key]) for key in ("family", "table", "chain"))
        self.lengths[family, table, chain] += 1
        place = (table, chain, self.lengths[family, table, chain])
        handle, message = rule["handle"], rule["expr"]
        assert isinstance(handle, int)
        assert isinstance(message, list)
        self.places[family, table, handle] = place
        for each in message:
            if "counter" in each:
                self.counters[Counted(family, place)] += each["counter"]["packets"]


class NftWitness:
    """See Witness: the tables that iptables-nft keeps. Policies have no counter, other ends of chains are not told."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._trace = namespace.inside(NftTrace)

    def look_again(self, rules: Mapping[Family, Ruleset]) -> None:
        """See Witness."""
        self._rules = rules
        self._listing = Listing(self._namespace)

    def met(self) -> list[Place]:
        """See Witness. Tables of the test's own are left out."""
        return [
            self._listing.places.get((event.family, event.table, event.handle))
            or (event.table, event.chain, self._listing.lengths[event.family, event.table, event.chain] + 1)
            for event in self._trace.read()
            if self._is_ours(event.family, event.table)
        ]

    def _is_ours(self, family: str, table: str) -> bool:
        return family in WORDS.values()

    def expected(self, traces: Sequence[Trace], family: Family) -> list[Place]:
        """See Witness. A built-in chain that nobody needed does not exist."""
        places = (place for met in traces for step, place in _places(met, self._rules[family]) if _is_told(step))
        return [place for place in places if (WORDS[family], *place[:2]) in self._listing.chains]

    def counters(self) -> Counter[Counted]:
        """See Witness."""
        return +Listing(self._namespace).counters

    def counting(self, places: Sequence[Place], family: Family) -> Iterator[Counted]:
        """See Witness."""
        return self._having_counters(places, WORDS[family])

    def _having_counters(self, places: Sequence[Place], word: str) -> Iterator[Counted]:
        return (Counted(word, each) for each in places if each[2] <= self._listing.lengths[word, each[0], each[1]])

    def close(self) -> None:
        """See Witness."""
        self._trace.close()


def _is_told(step: RuleStep | ChainEnd) -> bool:
    return isinstance(step, RuleStep) or bool(step.policy)


class NativeWitness(NftWitness):
    """See Witness: native nftables, whose rules are not the ruleset's one by one."""

    def look_again(self, rules: Mapping[Family, Ruleset]) -> None:
        """See Witness."""
        super().look_again(rules)
        laid_out = {name: stored(layout(rules.values(), name)) for name in NAMES}
        self._tables = {name: table for name, table in laid_out.items() if table.chains}
        self._standing: dict[tuple[Family, Place], Place] = {}
        for table in self._tables.values():
            for chain in table.chains:
                there = ("inet", NAMES[table.name], chain_name(chain.name))
                assert self._listing.lengths[there] == len(chain.rules), f"{there} is not laid out as was thought"
        for family, ruleset in rules.items():
            for each in ruleset.tables:
                for result in each.chains:
                    self._standing.update(_standing(self._tables[each.name], result, family))

    def _is_ours(self, family: str, table: str) -> bool:
        return family == "inet" and table in NAMES.values()

    def expected(self, traces: Sequence[Trace], family: Family) -> list[Place]:
        """See Witness."""
        return [place for met in traces for place in self._at_hook(met, family)]

    def _at_hook(self, met: Trace, family: Family) -> Iterator[Place]:
        result = list(_places(met, self._rules[family]))
        for name in HOOKS[met.hook]:
            if name not in self._tables:
                continue
            if self._rules[family].table(name) is None:
                yield from self._guarded(name, met.hook)
                continue
            # A rule that stands for several is met once, whichever of them, and however many, the packet matches.
            before: set[tuple[int, Place]] = set()
            for step, place in result:
                if place[0] != name or not _is_told(step) or not (now := self._native(step, place, family)):
                    continue
                visit = (id(step.via), now) if isinstance(step, RuleStep) else (0, now)
                if isinstance(step, ChainEnd) or visit not in before:
                    yield now
                before.add(visit)

    def _native(self, step: RuleStep | ChainEnd, place: Place, family: Family) -> Place | None:
        if isinstance(step, RuleStep):
            return self._standing[family, place]
        there = (NAMES[place[0]], chain_name(place[1]))  # type: ignore[index] # a table's name
        return (*there, self._listing.lengths["inet", *there] + 1) if ("inet", *there) in self._listing.chains else None

    def _guarded(self, name: TableName, hook: str) -> Iterator[Place]:
        """A table of the other family's alone sends this one's packets back."""
        there = (NAMES[name], chain_name(hook))
        if ("inet", *there) in self._listing.chains:
            yield (*there, 1)
            yield (*there, self._listing.lengths["inet", *there] + 1)

    def counting(self, places: Sequence[Place], family: Family) -> Iterator[Counted]:
        """See Witness."""
        return self._having_counters(places, "inet")


def _standing(table: InetTable, chain: Chain, family: Family) -> Iterator[tuple[tuple[Family, Place], Place]]:
    """Where each rule of a family's chain is in the inet table."""
    there = next((each for each in table.chains if each.name == chain.name), None)
    if there is None:
        return
    numbers: defaultdict[int, list[int]] = defaultdict(list)
    for number, source in enumerate(chain.rules, 1):
        numbers[id(source)].append(number)
    folded = fold(chain.rules, family)
    at = 0
    for number, rule in enumerate(folded.rules):
        at = next(position for position in range(at, len(there.rules)) if _covers(rule, there.rules[position]))
        at += 1
        for source in folded.sources(number):
            place = (table.name, chain.name, numbers[id(source)].pop(0))
            yield (family, place), (NAMES[table.name], chain_name(chain.name), at)
        at += isinstance(rule.target, Tproxy)


def _covers(rule: InetRule, standing: InetRule) -> bool:
    return standing.family in (None, rule.family) and standing.replace(family=rule.family) == rule


WITNESSES: dict[str, type[LegacyWitness | NftWitness]] = {
    "legacy": LegacyWitness,
    "nft": NftWitness,
    "native": NativeWitness,
}
