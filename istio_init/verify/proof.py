"""Checks the invariants of options against what the rules do to every class of packets.

docs/prove.md describes the method and its limits.
"""

from __future__ import annotations

from istio_init.model.foreign import HookedTable
from istio_init.model.packet import LOOPBACKS, is_named, scope
from istio_init.model.routing import Address
from istio_init.model.rules import FAMILIES, LOOPBACK_INTERFACE, TCP, Network
from istio_init.planning.capture import AGENT_DNS_PORT, uses_tproxy
from istio_init.record import Record
from istio_init.verify.family_parity import disagreements
from istio_init.verify.foreign_lists import shortened
from istio_init.verify.header_space import (
    CONNMARK,
    DESTINATION,
    GID,
    IN,
    MARK,
    OUT,
    PROTOCOL,
    SOURCE,
    STATE,
    UID,
    Space,
    difference,
    intersection,
)
from istio_init.verify.invariants import DIRECT, DNS, INBOUND, OUTBOUND, Invariant, Invariants, zone_name
from istio_init.verify.match_sets import MatchSets
from istio_init.verify.packet_set import CONNECTIONLESS, FIRST_ONE, LATER, PacketSet
from istio_init.verify.reachability import Reachability
from istio_init.verify.report import ALIKE, DeadRule, Fault, describe
from istio_init.verify.set_products import within_bounds
from istio_init.verify.sources import boundaries, inbound, outbound, usual

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from istio_init.model.packet import Facts, Packet
    from istio_init.model.rules import Family, Hook, Rule, Ruleset
    from istio_init.options.table import Options
    from istio_init.simulate.path import Proxy
    from istio_init.verify.header_space import Cube

    # Packet sets by the hook that they started at.
    SetsByHook: TypeAlias = dict[Hook, list[PacketSet]]

STARTS: dict[Hook, Callable[[Space, Facts], list[Cube]]] = {"OUTPUT": outbound, "PREROUTING": inbound}
# At most this many packets are shown for a broken invariant.
MOST_SHOWN = 3
AS_PLANNED = "every packet is treated as by the plan for these options"


class Proof(Record):
    """The result: faults, dead rules, the names of the invariants, and the number of packet classes."""

    faults: tuple[Fault, ...]
    dead_rules: tuple[DeadRule, ...]
    invariants: tuple[str, ...]
    packet_classes: int

    @property
    def holds(self) -> bool:
        """Whether no invariant is broken, apart from the known faults of Istio's own rules."""
        return all(fault.known_cause for fault in self.faults)


def prove(
    options: Options,
    rulesets: tuple[Ruleset, ...],
    facts: Facts,
    envoy: Proxy,
    planned: tuple[Ruleset, ...] | None = None,
) -> Proof:
    """Check the options' invariants; with `planned`, also that the rules treat packets the same as these."""
    pairs = [shortened(ruleset) for ruleset in rulesets]
    rulesets = tuple(ruleset for ruleset, _ in pairs)
    facts = facts.replace(ip_sets=within_bounds((*facts.ip_sets, *(each for _, sets in pairs for each in sets))))
    proofs = [FamilyProof(options, ruleset, rulesets, facts, envoy) for ruleset in rulesets]
    faults = [fault for each in proofs for fault in each.faults()]
    if len(proofs) == len(FAMILIES):
        faults += disagreements(proofs[0], proofs[1], options)
    for one in planned or ():
        faults += _plan_differences(one, rulesets, options, facts, envoy)
    claims = dict.fromkeys(claim for each in proofs for claim in each.invariants)
    counts: dict[tuple[str, Family], int] = {}
    reported = []
    for fault in faults:
        key = (fault.invariant, fault.family)
        counts[key] = counts.get(key, 0) + 1
        reported += [fault] if counts[key] <= MOST_SHOWN else []
    dead_rules = tuple(each for proof in proofs for each in proof.dead_rules())
    names = (*claims, *((ALIKE,) if len(proofs) == len(FAMILIES) else ()), *((AS_PLANNED,) if planned else ()))
    return Proof(tuple(reported), dead_rules, names, sum(proof.packet_classes for proof in proofs))


def differences_between(
    one: Ruleset, other: Ruleset, options: Options, facts: Facts, envoy: Proxy
) -> Iterator[tuple[Packet, str, str]]:
    """Packets that two rulesets of one family treat differently, with the outcome of each ruleset."""
    space = Space(one.family, (one, other), boundaries(options, facts, envoy))
    first, second = Reachability(space, one, facts), Reachability(space, other, facts)
    for hook, starts in STARTS.items():
        for packet_set in first.travel(hook, starts(space, facts)):
            for counter in second.travel(hook, [packet_set.cube]):
                if _outcome(packet_set, counter.cube) != _outcome(counter, counter.cube):
                    packet = space.packet(usual(counter.cube, space, facts), hook)
                    yield packet, describe(packet_set, space), describe(counter, space)


def _outcome(packet_set: PacketSet, cube: Cube) -> tuple[object, ...]:
    """The outcome of a set's packets that are in a cube, for comparison."""
    changed = dict(packet_set.changed)
    now = [
        1 << changed[dimension] if dimension in changed else cube[dimension]
        for dimension in (DESTINATION, MARK, CONNMARK, IN, OUT)
    ]
    if packet_set.end == "dropped":
        return ("dropped",)
    return (packet_set.end, packet_set.redirect, packet_set.tproxy, packet_set.zone, *now)


def _plan_differences(
    planned: Ruleset, rulesets: tuple[Ruleset, ...], options: Options, facts: Facts, envoy: Proxy
) -> Iterator[Fault]:
    """Packets that the rules treat differently from the plan's rules."""
    current = next((ruleset for ruleset in rulesets if ruleset.family == planned.family), None)
    if current is None or current == planned:
        return
    for differing in differences_between(planned, current, options, facts, envoy):
        yield Fault(AS_PLANNED, *differing)


class FamilyProof:
    """The proof for one family's rules, over a space made from the boundaries of all families."""

    def __init__(
        self, options: Options, ruleset: Ruleset, every: tuple[Ruleset, ...], facts: Facts, envoy: Proxy
    ) -> None:
        self.family, self._ruleset = ruleset.family, ruleset
        self._options, self.facts, self._envoy = options, facts, envoy
        # The boundaries of all families, so that classes (except of addresses) are the same in both.
        self.space = Space(ruleset.family, every, boundaries(options, facts, envoy))
        self._walk = Reachability(self.space, ruleset, facts)
        self.sets: SetsByHook = {
            hook: self._walk.travel(hook, starts(self.space, facts)) for hook, starts in STARTS.items()
        }
        self.packet_classes = sum(len(sets) for sets in self.sets.values())
        self.invariants: list[str] = []

    def sorts(self, packet_set: PacketSet) -> tuple[str, ...]:
        """The outcome of a packet set, by the names that invariants use."""
        if packet_set.end in {"dropped", "undecided", "queued"}:
            return (packet_set.end,)
        envoy = self._envoy
        by_port = ((envoy.outbound_port, OUTBOUND), (envoy.inbound_port, INBOUND), (AGENT_DNS_PORT, DNS))
        ports = {port for port in (packet_set.redirect, packet_set.tproxy) if port}
        names = tuple(name for port, name in by_port if port in ports)
        return names or (("another port",) if ports else (DIRECT,))

    def faults(self) -> Iterator[Fault]:
        """All broken invariants."""
        claims = Invariants(self._options, self.space)
        new = [packet_set for packet_set in self.sets["OUTPUT"] if _started_new(packet_set)]
        # A RELATED connection follows from another one, and TPROXY delivers it (docs/prove.md).
        first = self.space.only(STATE, "NEW")
        unmarked = self.space.cube(mark=1 << self.space.mark(0), ctstate=first)
        yield from self._check("OUTPUT", new, unmarked, claims.outbound(), self.sorts)
        coming = [packet_set for packet_set in self.sets["PREROUTING"] if _started_new(packet_set)]
        arrivals = self._arrivals()
        arriving = (*arrivals[:-1], first)
        yield from self._check("PREROUTING", coming, arriving, claims.inbound(), self.sorts)
        tracked = [
            packet_set
            for packet_set in self.sets["OUTPUT"]
            if packet_set.kind != CONNECTIONLESS and packet_set.end != "dropped"
        ]
        yield from self._check("OUTPUT", tracked, self.space.everything, claims.zones(), _zone)
        tracked = [
            packet_set
            for packet_set in self.sets["PREROUTING"]
            if packet_set.kind != CONNECTIONLESS and packet_set.end != "dropped"
        ]
        yield from self._check("PREROUTING", tracked, self._arrivals(), claims.answer_zones(), _zone)
        yield from self._transparent(claims, new)
        yield from self._drops()

    def _arrivals(self) -> Cube:
        """Packets that arrive by interfaces with addresses, and that REDIRECT has an address for."""
        devices = {each.device for each in self.facts.addresses if each.network.family == self.family}
        return self.space.cube(
            in_interface=self.space.among(IN, devices - {LOOPBACK_INTERFACE}),
            destination=self.space.where(DESTINATION, lambda address: not scope(address)),
        )

    def _transparent(self, claims: Invariants, new: list[PacketSet]) -> Iterator[Fault]:
        """TPROXY's further invariants: Envoy reaches the app, and the app's replies reach Envoy."""
        options, space, envoy = self._options, self.space, self._envoy
        if not (uses_tproxy(options) and options.istio_inbound_ports):
            return
        mark, tcp = 1 << space.mark(envoy.mark), space.only(PROTOCOL, TCP)
        excluded = space.where(OUT, lambda name: any(is_named(each, name) for each in options.istio_exclude_interfaces))
        lo = space.only(OUT, LOOPBACK_INTERFACE)
        # The app is not addressed by the loopback address, which TPROXY never captures.
        remote_or_pod = space.where(
            DESTINATION, lambda address: not scope(address) and address != LOOPBACKS[self.family]
        )
        dialled = space.cube(
            protocol=tcp, out_interface=lo, mark=mark, uid=space.among(UID, (envoy.uid,)),
            gid=space.among(GID, (envoy.gid,)),
            destination=remote_or_pod, source=space.everything[SOURCE] & ~space.only(SOURCE, LOOPBACKS[self.family]),
        )  # fmt: skip
        yield from self._check("OUTPUT", new, dialled, claims.passthrough(), self.sorts)
        if not excluded & lo:
            claim = Invariant("the mark of Envoy's connections to the app is saved", space.everything, (mark,))
            yield from self._check("OUTPUT", new, dialled, [claim], lambda packet_set: (packet_set.now(CONNMARK),))
        later = [packet_set for packet_set in self.sets["OUTPUT"] if packet_set.kind == LATER]
        answers = space.cube(
            protocol=tcp, connmark=mark, mark=1 << space.mark(0), out_interface=space.everything[OUT] & ~lo & ~excluded
        )
        claim = Invariant("the app's replies reach Envoy", space.everything, ("delivered",))
        yield from self._check("OUTPUT", later, answers, [claim], lambda packet_set: (packet_set.end,))

    def _drops(self) -> Iterator[Fault]:
        """With --drop-invalid exactly the invalid packets are dropped, without it none."""
        claim, space = "only invalid packets are dropped, and only with --drop-invalid", self.space
        drop_invalid = self._options.drop_invalid
        excluded = self._options.istio_exclude_interfaces if uses_tproxy(self._options) else ()
        spared = space.where(IN, lambda name: any(is_named(each, name) for each in excluded))
        invalid = space.only(STATE, "INVALID")
        limits = self._arrivals()
        invariants = [Invariant(claim, space.cube(ctstate=space.everything[-1] & ~invalid), (False,))]
        invariants += [
            Invariant(claim, space.cube(in_interface=spared), (False,)),
            Invariant(claim, space.everything, (drop_invalid,)),
        ]
        yield from self._check("PREROUTING", self.sets["PREROUTING"], limits, invariants, _dropped)
        tracked = [Invariant(claim, space.cube(ctstate=space.everything[-1] & ~invalid), (False,))]
        tracked += [Invariant(claim, space.everything, (False, drop_invalid))]
        yield from self._check("OUTPUT", self.sets["OUTPUT"], space.everything, tracked, _dropped)

    def _check(
        self, hook: Hook, sets: Iterable[PacketSet], limits: Cube, invariants: Iterable[Invariant],
        outcome: Callable[[PacketSet], tuple[object, ...]],
    ) -> Iterator[Fault]:  # fmt: skip
        """A fault for each set, within limits, whose outcome its first invariant does not permit."""
        checked = list(invariants)
        self.invariants += [invariant.name for invariant in checked if all(invariant.cube)]
        for packet_set in sets:
            outcomes = outcome(packet_set)
            within = intersection(packet_set.cube, limits)
            remaining = [within] if within else []
            for invariant in checked:
                if not remaining:
                    break
                allowed = any(each in invariant.expected for each in outcomes)
                covered = [both for cube in remaining if (both := intersection(cube, invariant.cube))]
                if covered and not allowed:
                    packet = self.space.packet(usual(covered[0], self.space, self.facts), hook)
                    yield Fault(
                        invariant.name,
                        packet,
                        _words(invariant.expected),
                        describe(packet_set, self.space),
                        invariant.known_cause,
                    )
                if covered:
                    remaining = [rest for cube in remaining for rest in difference(cube, invariant.cube)]

    def dead_rules(self) -> Iterator[DeadRule]:
        """Rules that no packet matches, and chains that no packet enters."""
        for table in self._ruleset.tables:
            for chain in table.chains if not isinstance(table, HookedTable) else ():
                if (table.name, chain.name) not in self._walk.entered:
                    if chain.policy is None:
                        yield DeadRule(self.family, table.name, chain.name, 0, None, "nothing reaches this chain")
                    continue
                for number, rule in enumerate(chain.rules, 1):
                    if (table.name, chain.name, number) not in self._walk.hits:
                        yield DeadRule(self.family, table.name, chain.name, number, rule, self._why_dead(rule))

    def _why_dead(self, rule: Rule) -> str:
        cubes = [cube for some, _ in MatchSets(self.space, self.facts).of(rule) for cube in some]
        starting = (cube for starts in STARTS.values() for cube in starts(self.space, self.facts))
        if any(intersection(start, cube) for start in starting for cube in cubes):
            return "earlier rules decide for all packets that it matches"
        return "the kernel routes no such packets here"


def _started_new(packet_set: PacketSet) -> bool:
    """Whether a set's packets are a connection's first ones, even if a rule keeps them from being tracked."""
    return packet_set.kind == FIRST_ONE or any(dimension == STATE for dimension, _ in packet_set.changed)


def _zone(packet_set: PacketSet) -> tuple[object, ...]:
    return (zone_name(packet_set.zone),)


def _dropped(packet_set: PacketSet) -> tuple[object, ...]:
    return (packet_set.end == "dropped",)


def _words(expected: tuple[object, ...]) -> str:
    """The expected outcomes, in words."""
    return " or ".join(NAMES.get(each, f"{each}") for each in expected)


NAMES: dict[object, str] = {
    DIRECT: "not captured",
    OUTBOUND: "to Envoy's outbound listener",
    INBOUND: "to Envoy's inbound listener",
    DNS: "to the agent's resolver",
    True: "dropped",
    False: "not dropped",
}


def with_interfaces(facts: Facts, options: Options, own: Iterable[Network]) -> Facts:
    """The facts with an address on each interface that the options name, so that rules for it are checked as well."""
    names = (*options.istio_exclude_interfaces, *options.kube_virt_interfaces)
    real = {f"{name[:-1]}~"[:15] if name.endswith("+") else name for name in names} - {"~", LOOPBACK_INTERFACE}
    missing = sorted(real - {each.device for each in facts.addresses})
    further = tuple(Address(network, name) for name in missing for network in own)
    return facts.replace(addresses=(*facts.addresses, *further))
