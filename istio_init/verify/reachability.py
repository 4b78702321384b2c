"""Sets of packets on their way through the hooks, as trace.py and journey.py walk a single one."""

from __future__ import annotations

from istio_init.model.rules import LOOPBACK_INTERFACE, Jump, Verdict
from istio_init.simulate.trace import HOOKS, ICMP, NAT_SIDES
from istio_init.verify.header_space import DESTINATION, GID, IN, MARK, OUT, PROTOCOL, STATE, UID, intersection
from istio_init.verify.match_sets import Matching
from istio_init.verify.packet_set import CONNECTIONLESS, FIRST_ONE, ICMP_ERROR, LATER, Flow, merged
from istio_init.verify.transfer import Rewriting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from istio_init.model.packet import Facts
    from istio_init.model.rules import Chain, Hook, Rule, Ruleset, Table
    from istio_init.verify.header_space import Cube, Space

    # (table, chain, number from 1)
    Place: TypeAlias = tuple[str, str, int]

ENDS = {"DROP": "dropped", "QUEUE": "queued", "UNDECIDED": "undecided"}


class Flows:
    """Walks flows through a ruleset; keeps in mind which rules met a packet, and which chains were entered."""

    def __init__(self, space: Space, ruleset: Ruleset, facts: Facts) -> None:
        self._space, self._ruleset, self._facts = space, ruleset, facts
        self._matching, self._rewriting = Matching(space), Rewriting(space, facts)
        self._local = space.where(DESTINATION, facts.is_local)
        self._counting = True
        self.hits: set[Place] = set()
        self.entered: set[tuple[str, str]] = set()

    def travel(self, hook: Hook, cubes: Iterable[Cube]) -> list[Flow]:
        """The ends of all packets in the cubes, which are disjoint, from PREROUTING or OUTPUT on."""
        flows = [flow for cube in cubes for flow in self._kinds(cube)]
        ended: list[Flow] = []
        if hook == "OUTPUT":
            flows = self._through("OUTPUT", flows, ended)
            flows = [routed for flow in flows for routed in self._routed(flow)]
            flows = self._through("POSTROUTING", flows, ended)
            lo = self._space.only(OUT, LOOPBACK_INTERFACE)
            ended += [flow.replace(end="wire") for part in flows for flow in part.part(OUT, ~lo)]
            flows = [self._back(flow) for part in flows for flow in part.part(OUT, lo)]
            inside = self._through("PREROUTING", flows, ended)
        else:
            inside = self._arriving(self._through("PREROUTING", flows, ended), ended)
        ended += [flow.replace(end="delivered") for flow in self._through("INPUT", inside, ended)]
        return merged(ended)

    def _kinds(self, cube: Cube) -> Iterator[Flow]:
        """A cube's packets by what connection tracking makes of them."""
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
                yield Flow(part, kind)

    def _routed(self, flow: Flow) -> Iterator[Flow]:
        """What passed OUTPUT, with the interface that it leaves by, if it was changed on the way."""
        changed = dict(flow.changed)
        if DESTINATION not in changed and MARK not in changed:
            yield flow
            return
        lo = self._space.number(OUT, LOOPBACK_INTERFACE)
        for local in flow.part(DESTINATION, self._local):
            yield local.having((OUT, lo))
        for remote in flow.part(DESTINATION, ~self._local):
            mark = self._space.values[MARK][changed[MARK]]
            if self._facts.policy_route(self._space.family, mark):
                yield remote.having((OUT, lo))
                continue
            yield from remote.part(OUT, ~(1 << lo))
            for stray in remote.part(OUT, 1 << lo):
                yield stray.having((OUT, self._space.number(OUT, self._facts.uplink)))

    def _back(self, flow: Flow) -> Flow:
        """What left by lo, as it comes in again; the socket that sent it is forgotten."""
        nobody = self._space.number(UID, None), self._space.number(GID, None)
        lo, none = self._space.number(IN, LOOPBACK_INTERFACE), self._space.number(OUT, "")
        return flow.having((IN, lo), (OUT, none), (UID, nobody[0]), (GID, nobody[1]))

    def _arriving(self, flows: list[Flow], ended: list[Flow]) -> list[Flow]:
        """What is for the machine itself of what came from outside; the rest is forwarded, and ended."""
        inside: list[Flow] = []
        onward: list[Flow] = []
        policy = self._space.where(MARK, lambda mark: bool(self._facts.policy_route(self._space.family, mark)))
        for flow in flows:
            if flow.tproxy:
                inside.append(flow)
                continue
            inside += flow.part(DESTINATION, self._local)
            for remote in flow.part(DESTINATION, ~self._local):
                inside += remote.part(MARK, policy)
                onward += remote.part(MARK, ~policy)
        uplink = self._space.number(OUT, self._facts.uplink)
        passed = self._through("FORWARD", [flow.having((OUT, uplink)) for flow in onward], ended)
        nothing = self._space.number(IN, "")
        passed = self._through("POSTROUTING", [flow.having((IN, nothing)) for flow in passed], ended)
        ended += [flow.replace(end="forwarded") for flow in passed]
        return inside

    def _through(self, hook: Hook, flows: list[Flow], ended: list[Flow]) -> list[Flow]:
        """What of the flows passes all tables of a hook; the rest is added to `ended`."""
        for name in HOOKS[hook]:
            table = self._ruleset.table(name)
            if table is None or not flows:
                continue
            if name == "nat":
                asked = [flow for flow in flows if _is_first(flow, hook)]
                spared = [
                    part for flow in flows if not _is_first(flow, hook) for part in self._later(table, flow, hook)
                ]
                flows = self._table(table, hook, asked, ended) + spared
            else:
                flows = self._table(table, hook, flows, ended)
        return [_leaving(flow, hook) for flow in flows]

    def _later(self, nat: Table, flow: Flow, hook: Hook) -> list[Flow]:
        """A later packet's flow with the translation that its first packet was given by these same rules."""
        if flow.kind != LATER or NAT_SIDES[hook] in flow.nat:
            return [flow]
        self._counting = False
        new = flow.having((STATE, self._space.number(STATE, "NEW")))
        ended: list[Flow] = []
        found = self._table(nat, hook, [new], ended) + [each.replace(end="") for each in ended]
        self._counting = True
        return [each.replace(changed=tuple(c for c in each.changed if c[0] != STATE)) for each in found]

    def _table(self, table: Table, hook: Hook, flows: list[Flow], ended: list[Flow]) -> list[Flow]:
        """What of the flows a table accepts."""
        base = table.chain(hook)
        if base is None:
            return flows
        accepted: list[Flow] = []
        rest = self._chain(table, base, hook, flows, accepted, ended)
        if base.policy == "DROP":
            ended += [flow.replace(end="dropped") for flow in rest]
            return merged(accepted)
        return merged(accepted + rest)

    def _chain(  # noqa: PLR0913, PLR0917 (what a walk is made of)
        self, table: Table, chain: Chain, hook: Hook, flows: list[Flow], accepted: list[Flow], ended: list[Flow]
    ) -> list[Flow]:
        """What comes back from a chain; what is accepted or ends there is added to the lists."""
        if flows and self._counting:
            self.entered.add((table.name, chain.name))
        returned: list[Flow] = []
        for number, rule in enumerate(chain.rules, 1):
            if not flows:
                break
            hit, flows = self._split(rule, flows, ended)
            if not hit:
                continue
            if self._counting:
                self.hits.add((table.name, chain.name, number))
            target = rule.target
            if isinstance(target, Jump):
                called = table.chain(target.chain)
                back = self._chain(table, called, hook, hit, accepted, ended) if called else hit
                (returned if target.goto else flows).extend(back)
                continue
            for flow in hit:
                for after, answer in self._rewriting.act(target, flow, hook):
                    if answer == "CONTINUE":
                        flows.append(after)
                    elif answer == "RETURN":
                        returned.append(after)
                    elif answer == "ACCEPT":
                        accepted.append(after)
                    else:
                        ended.append(after.replace(end=ENDS[answer]))
        return merged(returned + flows)

    def _split(self, rule: Rule, flows: list[Flow], ended: list[Flow]) -> tuple[list[Flow], list[Flow]]:
        """What of the flows a rule matches, and what it does not; what can't be told is added to `ended`."""
        cubes, decided = self._matching.of(rule)
        if not decided and isinstance(rule.target, Verdict) and not rule.target.name:
            return [], flows
        hit: list[Flow] = []
        for cube in cubes:
            missed: list[Flow] = []
            for flow in flows:
                mine, others = self._matching.split(flow, cube)
                hit += mine
                missed += others
            flows = missed
        if decided:
            return hit, flows
        ended += [flow.replace(end="undecided") for flow in hit]
        return [], flows


def _is_first(flow: Flow, hook: Hook) -> bool:
    return flow.kind == FIRST_ONE and NAT_SIDES[hook] not in flow.nat


def _leaving(flow: Flow, hook: Hook) -> Flow:
    """A flow behind a hook: tracked, and its connection's translation decided on that hook's side."""
    side = NAT_SIDES.get(hook)
    if side is None or flow.kind == CONNECTIONLESS:
        return flow
    nat = flow.nat if side in flow.nat else (*flow.nat, side)
    zone = flow.zone or 0
    known = flow.tracked and flow.zone == zone and flow.nat == nat
    return flow if known else flow.replace(tracked=True, zone=zone, nat=nat)
