"""What stands in a namespace against what the options want, and what a run would do about it. Changes nothing.

No lock is taken: a run that is under way at that moment may be seen half done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from istio_init.errors_rare import Drifted
from istio_init.model.compare import differences, own_part
from istio_init.model.rules import FAMILIES, Ruleset
from istio_init.planning.changes import Changes, State, decide, leftovers
from istio_init.planning.drift_text import deviations
from istio_init.planning.plan import build
from istio_init.planning.removal import removal
from istio_init.record import Record
from istio_init.runner import backends
from istio_init.runner.settle import settle
from istio_init.runner.transaction import routing_matters

if TYPE_CHECKING:
    from istio_init.kernel import Firewall
    from istio_init.log import Log
    from istio_init.model.inet import InetTable
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan

Verdict: TypeAlias = Literal["in place", "drifted", "absent"]
Deed: TypeAlias = Literal["nothing", "write", "refuse"]


class Home(Record):
    """What stands in one backend's tables, both families, others' rules included.

    `inet` are the inet tables that the rules of the backend `native` are, empty for the other two.
    """

    backend: str
    rulesets: tuple[Ruleset, ...]
    inet: tuple[InetTable, ...] = ()


class Inspection(Record):
    """Settled options, their plan, the backend that a run writes to, and why, and what stands.

    `others` are the tables of other backends; `state` has the backend's own rules and all routing.
    """

    options: Options
    plan: Plan
    backend: str
    why: str
    home: Home
    others: tuple[Home, ...]
    state: State

    @property
    def crowded(self) -> tuple[Home, ...]:
        """The other backends in whose tables rules of ours stand."""
        return tuple(home for home in self.others if removal(State(home.rulesets), self.plan))

    @property
    def observed(self) -> State:
        """What a run with these options would look at: the plan's families, and routing where it matters."""
        return self._observed(reconcile=self.options.reconcile)

    def _observed(self, *, reconcile: bool) -> State:
        wanted = {ruleset.family for ruleset in self.plan.rulesets}
        rulesets = tuple(ruleset for ruleset in self.state.rulesets if ruleset.family in wanted)
        looks = reconcile or routing_matters(self.plan, rulesets)
        return State(rulesets, self.state.routing if looks else ())

    def changes(self, *, reconcile: bool) -> Changes:
        """What an apply would write to the backend's own tables; Drifted where it would refuse."""
        found = self._observed(reconcile=reconcile)
        return decide(self.plan, found, reconcile=reconcile, force=self.options.force_apply)


class Outcome(Record):
    """What a run with these options would do, and why in words.

    `changes` has each backend with what would be written there, in order. Of a run that would refuse they are those
    that it would make with --reconcile.
    """

    deed: Deed
    why: str
    changes: tuple[tuple[Home, Changes], ...] = ()


def inspect(options: Options, log: Log) -> Inspection:
    """Look at the namespace that the options name. KernelError where it can't be read."""
    with backends.namespace(options):
        options = settle(options, log)
        plan = build(options)
        found = backends.tables()
        backend, why = backends.choose(options, found)
        if backend == "legacy":
            backends.refuse_blindness()
        firewall = backends.firewall(options, found=found)
        others = tuple(_home(name, each, plan) for name, each in backends.others(options, firewall, found))
        home = _home(backend, firewall, plan)
        state = State(home.rulesets, backends.router().read())
    return Inspection(options, plan, backend, why, home, others, state)


def _home(backend: str, firewall: Firewall, plan: Plan) -> Home:
    rulesets = tuple(firewall.read(family, plan.ruleset(family)) for family in FAMILIES)
    standing = getattr(firewall, "standing", tuple)
    return Home(backend, rulesets, standing())


def verdict(inspection: Inspection) -> Verdict:
    """Whether the plan is in place; absent is where no rule of ours stands in the plan's families."""
    if not findings(inspection):
        return "in place"
    found = inspection.observed
    ours = any(own_part(table) for ruleset in found.rulesets for table in ruleset.tables)
    return "drifted" if ours or inspection.crowded else "absent"


def findings(inspection: Inspection) -> tuple[str, ...]:
    """Everything that is not as the options want it, in words; empty where the plan is in place."""
    plan, found = inspection.plan, inspection.observed
    there = {ruleset.family: ruleset for ruleset in found.rulesets}
    drift = tuple(
        (want.family, difference)
        for want in plan.rulesets
        for difference in differences(want, there.get(want.family, Ruleset(want.family, ())))
    )
    missing = tuple(entry for entry in plan.routing if entry not in found.routing)
    stale = tuple(entry for entry in leftovers(found, plan) if entry not in plan.routing)
    elsewhere = [f"rules of ours stand in the {home.backend} tables, too" for home in inspection.crowded]
    return (*elsewhere, *deviations(drift, missing, stale))


def outcome(inspection: Inspection) -> Outcome:
    """What a run with these options would do."""
    options = inspection.options
    if options.cleanup_only:
        return _cleaning(inspection)
    if options.skip_rule_apply:
        return Outcome("nothing", "--skip-rule-apply")
    if inspection.crowded and not options.reconcile:
        names = " and ".join(home.backend for home in inspection.crowded)
        return _refused(inspection, f"rules of ours stand in the {names} tables, too")
    try:
        changes = inspection.changes(reconcile=options.reconcile)
    except Drifted:
        return _refused(inspection, "other rules of ours stand here")
    made = _made(inspection, changes)
    if not made:
        return Outcome("nothing", "in place")
    return Outcome("write", changes.why if changes else "reconciling", made)


def _refused(inspection: Inspection, why: str) -> Outcome:
    return Outcome("refuse", why, _made(inspection, inspection.changes(reconcile=True)))


def _made(inspection: Inspection, changes: Changes) -> tuple[tuple[Home, Changes], ...]:
    """An apply's changes: its own, then what is taken out of other backends' tables."""
    moved = ((home, removal(State(home.rulesets), inspection.plan)) for home in inspection.crowded)
    return tuple((home, each) for home, each in ((inspection.home, changes), *moved) if each)


def _cleaning(inspection: Inspection) -> Outcome:
    elsewhere = ((home, removal(State(home.rulesets), inspection.plan)) for home in inspection.others)
    steps = (*elsewhere, (inspection.home, removal(inspection.state, inspection.plan)))
    made = tuple((home, changes) for home, changes in steps if changes)
    return Outcome("write", "cleaning up", made) if made else Outcome("nothing", "nothing of ours stands")
