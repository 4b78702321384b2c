"""Compares a namespace with the plan of the options, and predicts what a run would do. Changes nothing.

Takes no lock, so it may see a run in progress half done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from istio_init.errors_rare import Drifted
from istio_init.kernel.netlink.masked_rules import masked_rules
from istio_init.model.ownership import own_part
from istio_init.model.rules import FAMILIES, IPV6
from istio_init.planning.changes import Changes, NamespaceState, decide, leftovers
from istio_init.planning.drift_text import deviations
from istio_init.planning.move import is_unfinished
from istio_init.planning.other_families import unplanned
from istio_init.planning.plan import build
from istio_init.planning.removal import removal
from istio_init.record import Record
from istio_init.runner import access, backends
from istio_init.runner.defaults import resolve_defaults
from istio_init.runner.transaction import routing_matters
from istio_init.simulate.precedence import precedences

if TYPE_CHECKING:
    from istio_init.kernel import Firewall
    from istio_init.log import Log
    from istio_init.model.inet import InetTable
    from istio_init.model.masked_rule import MaskedRule
    from istio_init.model.rules import Ruleset
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan

Conformance: TypeAlias = Literal["in place", "drifted", "absent"]
Action: TypeAlias = Literal["nothing", "write", "refuse"]


class BackendState(Record):
    """The rules in one backend's tables, both families, other programs' rules included.

    `inet` are the tables of the backend `native`, empty for the other two.
    """

    backend: str
    rulesets: tuple[Ruleset, ...]
    inet: tuple[InetTable, ...] = ()

    def removal(self, plan: Plan, *, releases: bool = False) -> Changes:
        """The changes that remove all Istio rules from these tables, without routing."""
        return removal(NamespaceState(self.rulesets), plan, releases=releases)


class Inspection(Record):
    """The options with defaults resolved, their plan, the backend that a run writes to, and the namespace's state.

    `others` are the tables of other backends; `state` has the backend's own rules and all routing that a plan may have;
    `masked_rules` are further policy rules.
    """

    options: Options
    plan: Plan
    backend: str
    why: str
    chosen: BackendState
    others: tuple[BackendState, ...]
    state: NamespaceState
    masked_rules: tuple[MaskedRule, ...] = ()

    @property
    def conflicting(self) -> tuple[BackendState, ...]:
        """The other backends whose tables have Istio rules."""
        return tuple(state for state in self.others if state.removal(self.plan))

    @property
    def is_unfinished_move(self) -> bool:
        """Whether an earlier run was killed while moving Istio's rules between backends; a plain run completes it."""
        states = (self.chosen, *self.conflicting)
        return is_unfinished(tuple(ruleset for state in states for ruleset in state.rulesets))

    @property
    def observed(self) -> NamespaceState:
        """The state that a run with these options reads: the plan's families, and routing if the rules need it."""
        return self._observed(reconcile=self.options.reconcile)

    def _observed(self, *, reconcile: bool) -> NamespaceState:
        families = {ruleset.family for ruleset in self.plan.rulesets}
        rulesets = tuple(ruleset for ruleset in self.state.rulesets if ruleset.family in families)
        read_routing = reconcile or routing_matters(self.plan, rulesets)
        return NamespaceState(rulesets, self.state.routing if read_routing else ())

    def changes(self, *, reconcile: bool) -> Changes:
        """The changes that an apply would make to the backend's own tables; Drifted if it would refuse."""
        observed = self._observed(reconcile=reconcile)
        others = tuple(ruleset for state in self.conflicting for ruleset in state.rulesets)
        return decide(self.plan, observed, reconcile=reconcile, force=self.options.force_apply, others=others)


class Forecast(Record):
    """What a run with these options would do, and the reason in words.

    `changes` has each backend with its changes, in order. If the run would refuse, they are the changes of a run with
    --reconcile.
    """

    action: Action
    why: str
    changes: tuple[tuple[BackendState, Changes], ...] = ()


def inspect(options: Options, log: Log) -> Inspection:
    """Inspect the namespace that the options name. KernelError if it can't be read."""
    with access.namespace(options):
        options = resolve_defaults(options, log)
        plan = build(options)
        present = backends.tables()
        backend, why = backends.choose(options, present)
        if backend == "legacy":
            backends.require_readable_tables()
        firewall = backends.firewall(options, present=present)
        others = tuple(_read_state(name, each, plan) for name, each in backends.others(options, firewall, present))
        chosen = _read_state(backend, firewall, plan)
        state = NamespaceState(chosen.rulesets, access.router().read())
        masked = masked_rules()
    return Inspection(options, plan, backend, why, chosen, others, state, masked)


def inspect_dump(options: Options, rulesets: tuple[Ruleset, ...], log: Log) -> Inspection:
    """Compare a dump's rules with the plan. A dump has no routing, so it is assumed to be in place."""
    if options.enable_ipv6 is None:
        options = options.replace(enable_ipv6=any(ruleset.family == IPV6 for ruleset in rulesets))
    options = resolve_defaults(options, log)
    plan = build(options)
    chosen = BackendState("dump", rulesets)
    state = NamespaceState(rulesets, plan.routing)
    return Inspection(options, plan, "dump", "the rules come from --from-save", chosen, (), state)


def _read_state(backend: str, firewall: Firewall, plan: Plan) -> BackendState:
    rulesets = tuple(firewall.read(family, plan.ruleset(family)) for family in FAMILIES)
    inet_tables = getattr(firewall, "inet_tables", tuple)
    return BackendState(backend, rulesets, inet_tables())


def conformance(inspection: Inspection) -> Conformance:
    """Whether the plan is in place; absent means that the plan's families have no Istio rules."""
    if not findings(inspection):
        return "in place"
    observed = inspection.observed
    exist = any(own_part(table) for ruleset in observed.rulesets for table in ruleset.tables)
    return "drifted" if exist or inspection.conflicting else "absent"


def findings(inspection: Inspection) -> tuple[str, ...]:
    """All differences from the plan, in words; empty if it is in place."""
    plan, observed = inspection.plan, inspection.observed
    missing = tuple(entry for entry in plan.routing if entry not in observed.routing)
    stale = tuple(entry for entry in leftovers(observed, plan) if entry not in plan.routing)
    elsewhere = [f"Istio rules also exist in the {state.backend} tables" for state in inspection.conflicting]
    return (*elsewhere, *deviations(plan, observed, missing, stale))


def warnings(inspection: Inspection) -> tuple[str, ...]:
    """Problems that are not drift: other programs' rules that precede Istio's, and old rules of an unplanned family."""
    states = {ruleset.family: ruleset for ruleset in inspection.chosen.rulesets}
    pairs = ((planned, states[planned.family]) for planned in inspection.plan.rulesets if planned.family in states)
    preceding = tuple(each.text for planned, existing in pairs for each in precedences(existing, planned))
    return (*preceding, *unplanned(inspection.plan, inspection.chosen.rulesets))


def forecast(inspection: Inspection) -> Forecast:
    """What a run with these options would do."""
    options = inspection.options
    if options.cleanup_only:
        return _cleaning(inspection)
    if options.skip_rule_apply:
        return Forecast("nothing", "--skip-rule-apply")
    if inspection.conflicting and not (options.reconcile or inspection.is_unfinished_move):
        names = " and ".join(state.backend for state in inspection.conflicting)
        return _refusal(inspection, f"Istio rules also exist in the {names} tables")
    try:
        changes = inspection.changes(reconcile=options.reconcile or bool(inspection.conflicting))
    except Drifted:
        return _refusal(inspection, "Istio rules that differ from the requested ones already exist")
    changes_by_backend = _changes_by_backend(inspection, changes)
    if not changes_by_backend:
        return Forecast("nothing", "in place")
    return Forecast("write", changes.why if changes else "reconciling", changes_by_backend)


def _refusal(inspection: Inspection, why: str) -> Forecast:
    return Forecast("refuse", why, _changes_by_backend(inspection, inspection.changes(reconcile=True)))


def _changes_by_backend(inspection: Inspection, changes: Changes) -> tuple[tuple[BackendState, Changes], ...]:
    """An apply's changes: to the chosen backend's tables, then removals from other backends' tables."""
    moved = ((state, state.removal(inspection.plan)) for state in inspection.conflicting)
    return tuple((state, each) for state, each in ((inspection.chosen, changes), *moved) if each)


def _cleaning(inspection: Inspection) -> Forecast:
    elsewhere = ((state, state.removal(inspection.plan, releases=True)) for state in inspection.others)
    others = tuple(ruleset for state in inspection.others for ruleset in state.rulesets)
    steps = (*elsewhere, (inspection.chosen, removal(inspection.state, inspection.plan, others, releases=True)))
    changed = tuple((state, changes) for state, changes in steps if changes)
    return Forecast("write", "cleaning up", changed) if changed else Forecast("nothing", "no Istio rules found")
