"""Follows sets of packets through the hooks, as simulate/trace.py and path.py follow a single packet."""

from __future__ import annotations

from istio_init.model.rules import LOOPBACK_INTERFACE, Jump
from istio_init.simulate.trace import ICMP, NAT_SIDES, tables_at
from istio_init.simulate.trace_steps import passes_on
from istio_init.verify.header_space import (
    DESTINATION,
    DESTINATION_PORT,
    GID,
    IN,
    MARK,
    OUT,
    PROTOCOL,
    SOURCE,
    STATE,
    UID,
    intersection,
)
from istio_init.verify.match_sets import MatchSets
from istio_init.verify.packet_set import CONNECTIONLESS, FIRST_ONE, ICMP_ERROR, LATER, PacketSet, merged
from istio_init.verify.transfer import Transfer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from istio_init.model.packet import Facts
    from istio_init.model.rules import Chain, Hook, Rule, Ruleset, Table
    from istio_init.verify.header_space import Cube, Space

    # (table, chain, number from 1)
    RulePosition: TypeAlias = tuple[str, str, int]

ENDS = {"DROP": "dropped", "QUEUE": "queued", "UNDECIDED": "undecided"}


class Reachability:
    """Follows sets through a ruleset; records which rules matched a packet, and which chains were entered."""

    def __init__(self, space: Space, ruleset: Ruleset, facts: Facts) -> None:
        self._space, self._ruleset, self._facts = space, ruleset, facts
        self._match_sets, self._transfer = MatchSets(space, facts), Transfer(space, facts)
        self._local = space.where(DESTINATION, facts.is_local)
        self._policy = space.where(MARK, lambda mark: bool(facts.policy_route(space.family, mark)))
        self._counting = True
        self.hits: set[RulePosition] = set()
        self.entered: set[tuple[str, str]] = set()

    def travel(self, hook: Hook, cubes: Iterable[Cube]) -> list[PacketSet]:
        """The ends of all packets in the cubes, which are disjoint, starting at PREROUTING or OUTPUT."""
        sets = [packet_set for cube in cubes for packet_set in self._kinds(cube)]
        ended: list[PacketSet] = []
        if hook == "OUTPUT":
            sets = self._through("OUTPUT", sets, ended)
            sets = [routed for packet_set in sets for routed in self._routed(packet_set)]
            sets = self._through("POSTROUTING", sets, ended)
            lo = self._space.only(OUT, LOOPBACK_INTERFACE)
            ended += [packet_set.replace(end="wire") for part in sets for packet_set in part.part(OUT, ~lo)]
            sets = [self._back(packet_set) for part in sets for packet_set in part.part(OUT, lo)]
            inside = self._through("PREROUTING", sets, ended)
        else:
            inside = self._arriving(self._through("PREROUTING", sets, ended), ended)
        ended += [packet_set.replace(end="delivered") for packet_set in self._through("INPUT", inside, ended)]
        return merged(ended)

    def _kinds(self, cube: Cube) -> Iterator[PacketSet]:
        """A cube's packets by their connection tracking state."""
        space = self._space
        icmp = space.among(PROTOCOL, ICMP)
        states = {name: space.only(STATE, name) for name in space.values[STATE]}
        related = states["RELATED"]
        for kind, limits in (
            (CONNECTIONLESS, space.cube(ctstate=states["INVALID"] | states["UNTRACKED"])),
            (LATER, space.cube(ctstate=states["ESTABLISHED"])),
            (FIRST_ONE, space.cube(ctstate=states["NEW"])),
            (FIRST_ONE, space.cube(ctstate=related, protocol=space.everything[PROTOCOL] & ~icmp)),
            (ICMP_ERROR, space.cube(ctstate=related, protocol=icmp)),
        ):
            if part := intersection(cube, limits):
                yield PacketSet(part, kind)

    def _routed(self, packet_set: PacketSet) -> Iterator[PacketSet]:
        """Packets after OUTPUT, with the interface that they leave by if a rule rerouted them."""
        changed = dict(packet_set.changed)
        if DESTINATION not in changed and MARK not in changed:
            yield packet_set
            return
        lo = self._space.number(OUT, LOOPBACK_INTERFACE)
        for local in packet_set.part(DESTINATION, self._local):
            yield local.having((OUT, lo))
        for remote in packet_set.part(DESTINATION, ~self._local):
            for marked in remote.part(MARK, self._policy):
                yield marked.having((OUT, lo))
            for unmarked in remote.part(MARK, ~self._policy):
                yield from unmarked.part(OUT, ~(1 << lo))
                for stray in unmarked.part(OUT, 1 << lo):
                    yield stray.having((OUT, self._space.number(OUT, self._facts.uplink)))

    def _back(self, packet_set: PacketSet) -> PacketSet:
        """Packets that left by lo, as they arrive again; they have no socket any more."""
        no_owner = self._space.number(UID, None), self._space.number(GID, None)
        lo, none = self._space.number(IN, LOOPBACK_INTERFACE), self._space.number(OUT, "")
        return packet_set.having((IN, lo), (OUT, none), (UID, no_owner[0]), (GID, no_owner[1]))

    def _arriving(self, sets: list[PacketSet], ended: list[PacketSet]) -> list[PacketSet]:
        """The incoming packets that are delivered locally; the others are forwarded and added to `ended`."""
        inside: list[PacketSet] = []
        onward: list[PacketSet] = []
        for packet_set in sets:
            if packet_set.tproxy:
                inside.append(packet_set)
                continue
            inside += packet_set.part(DESTINATION, self._local)
            for remote in packet_set.part(DESTINATION, ~self._local):
                inside += remote.part(MARK, self._policy)
                onward += remote.part(MARK, ~self._policy)
        uplink = self._space.number(OUT, self._facts.uplink)
        passed = self._through("FORWARD", [packet_set.having((OUT, uplink)) for packet_set in onward], ended)
        nothing = self._space.number(IN, "")
        passed = self._through("POSTROUTING", [packet_set.having((IN, nothing)) for packet_set in passed], ended)
        ended += [packet_set.replace(end="forwarded") for packet_set in passed]
        return inside

    def _through(self, hook: Hook, sets: list[PacketSet], ended: list[PacketSet]) -> list[PacketSet]:
        """The packets that all tables of a hook accept; the others are added to `ended`."""
        for name, table in tables_at(self._ruleset, hook, self._facts):
            if not sets:
                break
            sets = self._nat(table, hook, sets, ended) if name == "nat" else self._table(table, hook, sets, ended)
        return [_after_hook(packet_set, hook) for packet_set in sets]

    def _nat(self, table: Table, hook: Hook, sets: list[PacketSet], ended: list[PacketSet]) -> list[PacketSet]:
        """The packets that a nat table accepts: those that it sees, and those that are already translated."""
        first = [packet_set for packet_set in sets if _is_first(packet_set, hook)]
        # Packets that one table translated at this hook do not pass the next one.
        translated = [each for each in first if _was_translated(each, hook)]
        pending = [each for each in first if each not in translated]
        others = [packet_set for packet_set in sets if not _is_first(packet_set, hook)]
        if table.name == "nat":
            others = [part for packet_set in others for part in self._later(table, packet_set, hook)]
        return self._table(table, hook, pending, ended) + translated + others

    def _later(self, nat: Table, packet_set: PacketSet, hook: Hook) -> list[PacketSet]:
        """A set of later packets with the translation that their first packets get from the same rules."""
        if packet_set.kind != LATER or NAT_SIDES[hook] in packet_set.nat:
            return [packet_set]
        self._counting = False
        new = packet_set.having((STATE, self._space.number(STATE, "NEW")))
        ended: list[PacketSet] = []
        sets = self._table(nat, hook, [new], ended) + [each.replace(end="") for each in ended]
        self._counting = True
        return [each.replace(changed=tuple(c for c in each.changed if c[0] != STATE)) for each in sets]

    def _table(self, table: Table, hook: Hook, sets: list[PacketSet], ended: list[PacketSet]) -> list[PacketSet]:
        """The packets that a table accepts."""
        base = table.chain(hook)
        if base is None:
            return sets
        accepted: list[PacketSet] = []
        rest = self._chain(table, base, hook, sets, accepted, ended)
        if base.policy == "DROP":
            ended += [packet_set.replace(end="dropped") for packet_set in rest]
            return merged(accepted)
        return merged(accepted + rest)

    def _chain(  # noqa: PLR0913, PLR0917 (what a walk is made of)
        self,
        table: Table,
        chain: Chain,
        hook: Hook,
        sets: list[PacketSet],
        accepted: list[PacketSet],
        ended: list[PacketSet],
    ) -> list[PacketSet]:
        """The packets that return from a chain; those accepted or ended there are added to the lists."""
        if sets and self._counting:
            self.entered.add((table.name, chain.name))
        returned: list[PacketSet] = []
        for number, rule in enumerate(chain.rules, 1):
            if not sets:
                break
            hit, sets = self._split(rule, sets)
            if not hit:
                continue
            if self._counting:
                self.hits.add((table.name, chain.name, number))
            target = rule.target
            if isinstance(target, Jump):
                called = table.chain(target.chain)
                back = self._chain(table, called, hook, hit, accepted, ended) if called else hit
                (returned if target.goto else sets).extend(back)
                continue
            for packet_set in hit:
                for after, answer in self._transfer.act(target, packet_set, hook):
                    if answer == "CONTINUE":
                        sets.append(after)
                    elif answer == "RETURN":
                        returned.append(after)
                    elif answer == "ACCEPT":
                        accepted.append(after)
                    else:
                        ended.append(after.replace(end=ENDS[answer]))
        return merged(returned + sets)

    def _split(self, rule: Rule, sets: list[PacketSet]) -> tuple[list[PacketSet], list[PacketSet]]:
        """The packets that a rule matches, and those it does not; what it may match is in both."""
        hit: list[PacketSet] = []
        kept: list[PacketSet] = []
        for cubes, certainty in self._match_sets.of(rule):
            if certainty != "known" and passes_on(rule.target):
                continue
            inside, sets = self._inside(cubes, sets)
            if certainty == "unknown":
                inside = [packet_set.replace(doubtful=True) for packet_set in inside]
            hit += inside
            kept += inside if certainty != "known" else ()
        return hit, [*sets, *kept]

    def _inside(self, cubes: list[Cube], sets: list[PacketSet]) -> tuple[list[PacketSet], list[PacketSet]]:
        """The packets in disjoint cubes, and the others."""
        inside: list[PacketSet] = []
        for cube in cubes:
            # Most sets have nothing in one of a long list of cubes, as its narrowest dimension shows.
            narrow = min(range(len(cube)), key=lambda dimension: cube[dimension].bit_count())
            few = cube[narrow]
            missed: list[PacketSet] = []
            for packet_set in sets:
                if not packet_set.cube[narrow] & few and not packet_set.changed:
                    missed.append(packet_set)
                    continue
                within, outside = self._match_sets.split(packet_set, cube)
                inside += within
                missed += outside
            sets = missed
        return inside, sets


def _is_first(packet_set: PacketSet, hook: Hook) -> bool:
    return packet_set.kind == FIRST_ONE and NAT_SIDES[hook] not in packet_set.nat


def _was_translated(packet_set: PacketSet, hook: Hook) -> bool:
    """Whether first packets are already translated at this hook; each side is translated at one hook only."""
    dimensions = {DESTINATION, DESTINATION_PORT} if NAT_SIDES[hook] == "destination" else {SOURCE}
    return any(dimension in dimensions for dimension, _ in packet_set.changed)


def _after_hook(packet_set: PacketSet, hook: Hook) -> PacketSet:
    """A packet set after a hook: tracked, with its connection's translation decided for that hook's side."""
    side = NAT_SIDES.get(hook)
    if side is None or packet_set.kind == CONNECTIONLESS:
        return packet_set
    nat = packet_set.nat if side in packet_set.nat else (*packet_set.nat, side)
    zone = packet_set.zone or 0
    unchanged = packet_set.tracked and packet_set.zone == zone and packet_set.nat == nat
    return packet_set if unchanged else packet_set.replace(tracked=True, zone=zone, nat=nat)
