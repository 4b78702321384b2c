"""Decide, then act: the changes that bring a namespace to a plan, as a value.

`decide` is pure; runner/transaction.py carries the changes out, in their order.
"""

from __future__ import annotations

from istio_init.model.compare import TableChange, drifted_tables
from istio_init.model.routing import PolicyRule, Route
from istio_init.model.rules import IPV4, IPV6, LOOPBACK_INTERFACE, MOVING_CHAIN, Jump, Ruleset, Table
from istio_init.planning.plan import transition_mark
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, TableName
    from istio_init.planning.plan import Plan


class NamespaceState(Record):
    """The rulesets that were read from a namespace, other programs' rules included, and its routing."""

    rulesets: tuple[Ruleset, ...]
    routing: tuple[RoutingEntry, ...] = ()

    def ruleset(self, family: Family) -> Ruleset:
        """The rules of one family; empty for one that was not read."""
        for ruleset in self.rulesets:
            if ruleset.family == family:
                return ruleset
        return Ruleset(family, ())

    def table(self, family: Family, name: TableName) -> Table | None:
        """One table, or None where it does not exist."""
        return self.ruleset(family).table(name)


class Changes(Record):
    """Routing to add, then tables to write in this order, then routing to remove; `why` is for the log."""

    add: tuple[RoutingEntry, ...]
    tables: tuple[TableChange, ...]
    drop: tuple[RoutingEntry, ...]
    why: str

    def __bool__(self) -> bool:
        return bool(self.add or self.tables or self.drop)


def decide(
    plan: Plan,
    current: NamespaceState,
    *,
    reconcile: bool = False,
    force: bool = False,
    others: tuple[Ruleset, ...] = (),
) -> Changes:
    """The changes that apply the plan; Drifted where different Istio rules exist and `reconcile` is off.

    `others` are the rules in other backends' tables, whose routing is no longer needed either.

    A run that was killed between two commits left whole tables in place, and no Istio rules in IPv4's nat, which is
    written last: that is not drift, but a plan to complete.
    """
    drift = {
        (desired.family, name): absent
        for desired in plan.rulesets
        for name, absent in drifted_tables(desired, current.ruleset(desired.family))
    }
    missing = tuple(entry for entry in plan.routing if entry not in current.routing)
    stale = tuple(entry for entry in leftovers(current, plan, others) if entry not in plan.routing)
    if not (drift or missing or stale):
        return Changes((), _writes(plan, current, None), (), "forced") if force else Changes((), (), (), "in place")
    fresh = not any(_own_part(table) for ruleset in current.rulesets for table in ruleset.tables)
    unfinished = not fresh and (
        (_nat_is_bare(current) and all(drift.values()))
        or _is_unfinished_move(plan, current, stale, in_place=not (drift or missing))
    )
    if not (fresh or unfinished or reconcile):
        from istio_init.errors_rare import Drifted
        from istio_init.planning.drift_text import drift_message

        raise Drifted(drift_message(plan, current, missing, stale))
    why = "no Istio rules found" if fresh else "completing an unfinished run" if unfinished else "reconciling"
    return Changes(missing, _writes(plan, current, None if force else frozenset(drift)), stale, why)


def _own_part(table: Table) -> Table | None:
    from istio_init.model.ownership import own_part

    return own_part(table)


def _nat_is_bare(current: NamespaceState) -> bool:
    nat = current.table(IPV4, "nat")
    return nat is None or _own_part(nat) is None


def _is_unfinished_move(
    plan: Plan, current: NamespaceState, stale: tuple[RoutingEntry, ...], *, in_place: bool
) -> bool:
    """Whether a run was killed while it moved Istio's rules to these tables from another backend's."""
    marks = {transition_mark(rule.mark) for rule in plan.policy_rules}
    rest = (isinstance(entry, PolicyRule) and entry.mark in marks for entry in stale)
    moving = any(table.chain(MOVING_CHAIN) for ruleset in current.rulesets for table in ruleset.tables)
    return moving or (in_place and all(rest))


def _writes(plan: Plan, current: NamespaceState, only: frozenset[tuple[Family, str]] | None) -> tuple[TableChange, ...]:
    """The tables to write, in an order in which no packet passes uncaptured in between.

    mangle captures inbound traffic in TPROXY mode, nat everything else: the table that starts to capture is written
    before the one that stops. Otherwise nat comes last, IPv4's at the very end, as the mark of a complete run.
    """
    changes: list[TableChange] = []
    for desired in plan.rulesets:
        family = desired.family
        changes.extend(TableChange(family, table.name, table, table) for table in desired.tables)
        tables = current.ruleset(family).tables
        removed = (table.name for table in tables if desired.table(table.name) is None and _own_part(table))
        changes.extend(TableChange(family, name, None) for name in removed)
    if only is not None:
        changes = [change for change in changes if (change.family, change.name) in only]
    return tuple(sorted(changes, key=lambda change: _order(change, current)))


def _order(change: TableChange, current: NamespaceState) -> tuple[int, int]:
    """The sort key of a table: 0 for auxiliary tables, 1 for nat, 2 for a mangle table that ends TPROXY's capture."""
    if change.name == "nat":
        return 1, 0 if change.family == IPV6 else 1
    before = current.table(change.family, change.name)
    ends_capture = before is not None and captures(before) and not (change.desired and captures(change.desired))
    return (2 if ends_capture else 0), 0 if change.family == IPV6 else 1


def captures(table: Table) -> bool:
    """Whether a mangle table sends inbound connections to the proxy."""
    entry = table.chain("PREROUTING")
    return entry is not None and any(rule.target == Jump("ISTIO_INBOUND") for rule in entry.rules)


def leftovers(current: NamespaceState, plan: Plan, others: tuple[Ruleset, ...] = ()) -> tuple[RoutingEntry, ...]:
    """The existing policy rules and routes that Istio's TPROXY rules use, identified by the marks in those rules.

    Those of the options' own mark and table count even without such rules: an interrupted run may have removed them.
    `others` are the rules in other backends' tables.
    """
    if not current.routing:
        return ()
    rulesets = (*current.rulesets, *others)
    families = {ruleset.family for ruleset in rulesets}
    marks = {(ruleset.family, mark) for ruleset in rulesets for mark in inbound_marks(ruleset.table("mangle"))}
    rules = [
        entry for entry in current.routing if isinstance(entry, PolicyRule) and (entry.family, entry.mark) in marks
    ]
    tables = {(rule.family, rule.table) for rule in rules}
    routes = [
        entry
        for entry in current.routing
        if isinstance(entry, Route) and entry.device == LOOPBACK_INTERFACE and (entry.family, entry.table) in tables
    ]
    routed = {(route.family, route.table) for route in routes}
    by_mark: tuple[RoutingEntry, ...] = (*routes, *(rule for rule in rules if (rule.family, rule.table) in routed))
    of_the_options = (*plan.routes, *plan.policy_rules, *plan.spare)
    by_options = (entry for entry in of_the_options if entry.family in families and entry not in by_mark)
    return (*by_mark, *(entry for entry in by_options if entry in current.routing))


def inbound_marks(mangle: Table | None) -> set[int]:
    """The inbound marks that the TPROXY chains of a table set."""
    own = _own_part(mangle) if mangle else None
    if own is None:
        return set()
    from istio_init.model.extensions import SetMark, Tproxy

    chains = (chain for chain in own.chains if chain.name in {"ISTIO_TPROXY", "ISTIO_DIVERT"})
    targets = [rule.target for chain in chains for rule in chain.rules]
    return {t.mark for t in targets if isinstance(t, Tproxy)} | {t.value for t in targets if isinstance(t, SetMark)}
