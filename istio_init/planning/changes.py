"""Decide, then act: what a plan asks to be changed in a namespace, as a value.

`decide` is pure; commands.py carries its answer out, in its order.
"""

from __future__ import annotations

from istio_init.model.compare import TableChange, drifted_tables, own_part
from istio_init.model.routing import PolicyRule, Route
from istio_init.model.rules import IPV4, IPV6, LOOPBACK_INTERFACE, Jump, Ruleset, Table
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, TableName
    from istio_init.planning.plan import Plan


class NamespaceState(Record):
    """What stands in a namespace: the rulesets that were read, others' rules included, and the routing."""

    rulesets: tuple[Ruleset, ...]
    routing: tuple[RoutingEntry, ...] = ()

    def ruleset(self, family: Family) -> Ruleset:
        """The rules of one family; of one that was not looked at, none."""
        for ruleset in self.rulesets:
            if ruleset.family == family:
                return ruleset
        return Ruleset(family, ())

    def table(self, family: Family, name: TableName) -> Table | None:
        """One table, or None where it does not exist."""
        return self.ruleset(family).table(name)


class Changes(Record):
    """Routing to add, then tables to write in this order, then routing to take away; `why` is for the log."""

    add: tuple[RoutingEntry, ...]
    tables: tuple[TableChange, ...]
    drop: tuple[RoutingEntry, ...]
    why: str

    def __bool__(self) -> bool:
        return bool(self.add or self.tables or self.drop)


def decide(plan: Plan, found: NamespaceState, *, reconcile: bool = False, force: bool = False) -> Changes:
    """What applying the plan has to change; Drifted where other rules of ours stand and `reconcile` is off.

    A run that was killed between two commits left whole tables in place and IPv4's nat, which is written last,
    without anything of ours: that is no drift, but a plan to be completed.
    """
    drift = {
        (wanted.family, name): absent
        for wanted in plan.rulesets
        for name, absent in drifted_tables(wanted, found.ruleset(wanted.family))
    }
    missing = tuple(entry for entry in plan.routing if entry not in found.routing)
    stale = tuple(entry for entry in leftovers(found, plan) if entry not in plan.routing)
    if not (drift or missing or stale):
        return Changes((), _writes(plan, found, None), (), "forced") if force else Changes((), (), (), "in place")
    fresh = not any(own_part(table) for ruleset in found.rulesets for table in ruleset.tables)
    unfinished = _nat_is_bare(found) and all(drift.values())
    if not (fresh or unfinished or reconcile):
        from istio_init.errors_rare import Drifted
        from istio_init.planning.drift_text import drift_message

        raise Drifted(drift_message(plan, found, missing, stale))
    why = "nothing of ours stands" if fresh else "completing an unfinished run" if unfinished else "reconciling"
    return Changes(missing, _writes(plan, found, None if force else frozenset(drift)), stale, why)


def _nat_is_bare(found: NamespaceState) -> bool:
    nat = found.table(IPV4, "nat")
    return nat is None or own_part(nat) is None


def _writes(plan: Plan, found: NamespaceState, only: frozenset[tuple[Family, str]] | None) -> tuple[TableChange, ...]:
    """The tables to write, in an order in which no packet passes uncaptured in between.

    mangle captures inbound traffic in TPROXY mode, nat everything else: what takes over is written before what
    lets go. Otherwise nat comes last, IPv4's at the very end, as the seal of a whole run.
    """
    changes: list[TableChange] = []
    for wanted in plan.rulesets:
        family = wanted.family
        changes.extend(TableChange(family, table.name, table, table) for table in wanted.tables)
        there = found.ruleset(family).tables
        gone = (table.name for table in there if wanted.table(table.name) is None and own_part(table))
        changes.extend(TableChange(family, name, None) for name in gone)
    if only is not None:
        changes = [change for change in changes if (change.family, change.name) in only]
    return tuple(sorted(changes, key=lambda change: _turn(change, found)))


def _turn(change: TableChange, found: NamespaceState) -> tuple[int, int]:
    """The sort key of a table's turn: 0 tables that help, 1 nat, 2 a mangle table that lets go of TPROXY's capture."""
    if change.name == "nat":
        return 1, 0 if change.family == IPV6 else 1
    before = found.table(change.family, change.name)
    lets_go = before is not None and _captures(before) and not (change.wanted and _captures(change.wanted))
    return (2 if lets_go else 0), 0 if change.family == IPV6 else 1


def _captures(table: Table) -> bool:
    """Whether a mangle table sends inbound connections to the proxy."""
    entry = table.chain("PREROUTING")
    return entry is not None and any(rule.target == Jump("ISTIO_INBOUND") for rule in entry.rules)


def leftovers(found: NamespaceState, plan: Plan) -> tuple[RoutingEntry, ...]:
    """The standing policy rules and routes that TPROXY rules of ours use, told by the marks in those rules.

    Those of the options' own mark and table count where no rule tells, too: a run that was cut short had taken
    the rules away.
    """
    families = {ruleset.family for ruleset in found.rulesets}
    marks = {(family, mark) for family in families for mark in _marks(found.table(family, "mangle"))}
    rules = [entry for entry in found.routing if isinstance(entry, PolicyRule) and (entry.family, entry.mark) in marks]
    tables = {(rule.family, rule.table) for rule in rules}
    routes = [
        entry
        for entry in found.routing
        if isinstance(entry, Route) and entry.device == LOOPBACK_INTERFACE and (entry.family, entry.table) in tables
    ]
    routed = {(route.family, route.table) for route in routes}
    told: tuple[RoutingEntry, ...] = (*routes, *(rule for rule in rules if (rule.family, rule.table) in routed))
    of_the_options = (*plan.routes, *plan.policy_rules, *plan.spare)
    untold = (entry for entry in of_the_options if entry.family in families and entry not in told)
    return (*told, *(entry for entry in untold if entry in found.routing))


def _marks(mangle: Table | None) -> set[int]:
    """The inbound marks that the TPROXY chains of a table set."""
    own = own_part(mangle) if mangle else None
    if own is None:
        return set()
    from istio_init.model.extensions import SetMark, Tproxy

    chains = (chain for chain in own.chains if chain.name in {"ISTIO_TPROXY", "ISTIO_DIVERT"})
    targets = [rule.target for chain in chains for rule in chain.rules]
    return {t.mark for t in targets if isinstance(t, Tproxy)} | {t.value for t in targets if isinstance(t, SetMark)}
