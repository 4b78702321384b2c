"""A snapshot of a namespace: rules with counters, routing and tracked connections, compared with the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from istio_init.inspect.state import conformance, findings, inspect, inspect_dump, warnings
from istio_init.inspect.table_view import inet_rows, table_rows
from istio_init.kernel.netlink import conntrack
from istio_init.kernel.probe import counters
from istio_init.model.counters import CountedTable
from istio_init.model.routing import Address, command
from istio_init.model.rules import FAMILIES
from istio_init.planning.capture import AGENT_DNS_PORT, uses_tproxy
from istio_init.planning.changes import leftovers
from istio_init.record import Record
from istio_init.runner import access
from istio_init.simulate.purposes import purposes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.inspect.state import Conformance, Inspection
    from istio_init.inspect.table_view import RuleState, TableRows
    from istio_init.log import Log
    from istio_init.model.counters import Connection, Count, Usage
    from istio_init.model.rules import Ruleset
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan

EntryState: TypeAlias = Literal["in place", "missing", "unexpected", "other family", "foreign"]


class Snapshot(Record):
    """The tables, each with its backend's name, and how they compare with the plan.

    `routing` are the ip(8) commands that add each entry. `usage` is None without tracked connections. `connections`
    counts the captured ones by kind; it is None if the kernel does not list them.
    """

    verdict: Conformance
    backend: str
    why: str
    findings: tuple[str, ...]
    tables: tuple[tuple[str, TableRows], ...]
    routing: tuple[tuple[EntryState, str], ...]
    usage: Usage | None
    connections: dict[str, int] | None
    warnings: tuple[str, ...] = ()


def take(options: Options, log: Log) -> Snapshot:
    """Take a snapshot of the namespace that the options name. KernelError if it can't be read."""
    with access.namespace(options):
        inspection = inspect(options, log)
        tables = tuple(_tables(inspection))
        usage, connections = conntrack.usage(), conntrack.connections()
    count = None if connections is None else captured(connections, inspection.options)
    routing = tuple(_routing(inspection))
    return Snapshot(
        conformance(inspection),
        inspection.backend,
        inspection.why,
        findings(inspection),
        tables,
        routing,
        usage,
        count if usage else None,
        warnings(inspection),
    )


def of_dump(options: Options, rulesets: tuple[Ruleset, ...], log: Log) -> Snapshot:
    """A snapshot of a dump's rules, without counters, routing and connections."""
    inspection = inspect_dump(options, rulesets, log)
    reasons = {family: purposes(inspection.options, family) for family in FAMILIES}
    tables = []
    for ruleset in rulesets:
        planned = inspection.plan.ruleset(ruleset.family)
        stray: RuleState = "unexpected" if planned else "other family"
        for table in ruleset.tables:
            counts: dict[str, tuple[Count | None, ...]] = {
                chain.name: (None,) * len(chain.rules) for chain in table.chains
            }
            counted = CountedTable(ruleset.family, table, counts, {})
            planned_table = planned.table(table.name) if planned else None
            tables.append(("dump", table_rows(counted, planned_table, reasons[ruleset.family], stray)))
    state = conformance(inspection)
    return Snapshot(
        state, "dump", inspection.why, findings(inspection), tuple(tables), (), None, None, warnings(inspection)
    )


def _tables(inspection: Inspection) -> Iterator[tuple[str, TableRows]]:
    """The non-empty tables, first of the backend that a run writes to, then of the others."""
    for backend_state in (inspection.chosen, *inspection.others):
        plan = inspection.plan if backend_state is inspection.chosen else None
        for rows in (
            _native(inspection, plan)
            if backend_state.backend == "native"
            else _iptables(backend_state.backend, inspection, plan)
        ):
            if any(chain.rows or chain.missing or chain.policy is None for chain in rows.chains):
                yield backend_state.backend, rows


def _iptables(backend: str, inspection: Inspection, plan: Plan | None) -> Iterator[TableRows]:
    reasons = {family: purposes(inspection.options, family) for family in FAMILIES}
    for counted in counters.tables(backend):
        ruleset = plan.ruleset(counted.family) if plan else None
        planned = ruleset.table(counted.table.name) if ruleset else None
        # A run ignores a family that its plan lacks, but removes all Istio rules from other backends' tables.
        stray: RuleState = "other family" if plan and not ruleset else "unexpected"
        yield table_rows(counted, planned, reasons[counted.family], stray)


def _native(inspection: Inspection, plan: Plan | None) -> Iterator[TableRows]:
    reasons = {family: purposes(inspection.options, family) for family in FAMILIES}
    for counted in counters.inet_tables():
        yield inet_rows(counted, plan.rulesets if plan else (), reasons)


def _routing(inspection: Inspection) -> Iterator[tuple[EntryState, str]]:
    """The plan's entries, leftovers of earlier Istio rules, and other programs' entries that use marks."""
    plan, existing = inspection.plan, inspection.state.routing
    for entry in plan.routing:
        yield ("in place" if entry in existing else "missing"), command(entry)
    stale = leftovers(inspection.state, plan)
    for entry in existing:
        if entry not in plan.routing and not isinstance(entry, Address):
            own: EntryState = "unexpected" if plan.ruleset(entry.family) else "other family"
            yield (own if entry in stale else "foreign"), command(entry)
    yield from (("foreign", rule.command) for rule in inspection.masked_rules)


def captured(connections: Iterable[Connection], options: Options) -> dict[str, int]:
    """The number of connections redirected to each of the proxy's ports; with TPROXY, of those with its mark."""
    names = {
        options.envoy_port: "outbound",
        options.inbound_capture_port: "inbound",
        AGENT_DNS_PORT: "dns",
    }
    by_kind = dict.fromkeys(names.values(), 0)
    if uses_tproxy(options):
        by_kind["marked"] = 0
    for each in connections:
        if each.redirected and each.port in names:
            by_kind[names[each.port]] += 1
        elif "marked" in by_kind and each.mark == options.istio_inbound_tproxy_mark:
            by_kind["marked"] += 1
    return by_kind
