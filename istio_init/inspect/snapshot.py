"""All that there is to see of a namespace: rules with counters, routing, tracked connections, all against the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from istio_init.inspect.state import findings, inspect, verdict
from istio_init.inspect.table_view import inet_rows, table_rows
from istio_init.model.routing import Address, command
from istio_init.model.rules import FAMILIES
from istio_init.planning.capture import AGENT_DNS_PORT, uses_tproxy
from istio_init.planning.changes import leftovers
from istio_init.record import Record
from istio_init.runner import backends
from istio_init.simulate.purposes import purposes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.inspect.state import Inspection, Verdict
    from istio_init.inspect.table_view import State as RowState
    from istio_init.inspect.table_view import TableRows
    from istio_init.log import Log
    from istio_init.model.counters import Connection, Usage
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan

EntryState: TypeAlias = Literal["in place", "missing", "unexpected", "other family", "foreign"]


class Sight(Record):
    """What stands, each table with its backend's name, and how it compares with the plan.

    `routing` are ip(8)'s commands that add what stands or should. `usage` is None where no connection is tracked,
    `connections` (how many are captured, by kind) where the kernel does not tell them.
    """

    verdict: Verdict
    backend: str
    why: str
    findings: tuple[str, ...]
    tables: tuple[tuple[str, TableRows], ...]
    routing: tuple[tuple[EntryState, str], ...]
    usage: Usage | None
    connections: dict[str, int] | None


def see(options: Options, log: Log) -> Sight:
    """Look at the namespace that the options name. KernelError where it can't be read."""
    with backends.namespace(options):
        looked = inspect(options, log)
        tables = tuple(_tables(looked))
        usage, connections = backends.tracking()
    told = None if connections is None else captured(connections, looked.options)
    routing = tuple(_routing(looked))
    return Sight(
        verdict(looked), looked.backend, looked.why, findings(looked), tables, routing, usage, told if usage else None
    )


def _tables(looked: Inspection) -> Iterator[tuple[str, TableRows]]:
    """The tables of the backend that a run writes to, then others', those that hold anything or should."""
    for home in (looked.home, *looked.others):
        plan = looked.plan if home is looked.home else None
        for rows in _native(looked, plan) if home.backend == "native" else _iptables(home.backend, looked, plan):
            if any(chain.rows or chain.missing or chain.policy is None for chain in rows.chains):
                yield home.backend, rows


def _iptables(backend: str, looked: Inspection, plan: Plan | None) -> Iterator[TableRows]:
    known = {family: purposes(looked.options, family) for family in FAMILIES}
    for counted in backends.counted(backend):
        ruleset = plan.ruleset(counted.family) if plan else None
        wanted = ruleset.table(counted.table.name) if ruleset else None
        # A run leaves a family alone that its plan has not, but takes all of ours out of other backends' tables.
        stray: RowState = "other family" if plan and not ruleset else "unexpected"
        yield table_rows(counted, wanted, known[counted.family], stray)


def _native(looked: Inspection, plan: Plan | None) -> Iterator[TableRows]:
    known = {family: purposes(looked.options, family) for family in FAMILIES}
    for counted in backends.counted_inet():
        yield inet_rows(counted, plan.rulesets if plan else (), known)


def _routing(looked: Inspection) -> Iterator[tuple[EntryState, str]]:
    """The plan's entries, those that old rules of ours left, and others' that go by marks."""
    plan, standing = looked.plan, looked.state.routing
    for entry in plan.routing:
        yield ("in place" if entry in standing else "missing"), command(entry)
    stale = leftovers(looked.state, plan)
    for entry in standing:
        if entry not in plan.routing and not isinstance(entry, Address):
            ours: EntryState = "unexpected" if plan.ruleset(entry.family) else "other family"
            yield (ours if entry in stale else "foreign"), command(entry)


def captured(connections: Iterable[Connection], options: Options) -> dict[str, int]:
    """How many connections were redirected to the proxy's ports, by what for; with TPROXY, how many bear its mark."""
    names = {
        options.envoy_port: "outbound",
        options.inbound_capture_port: "inbound",
        AGENT_DNS_PORT: "dns",
    }
    found = dict.fromkeys(names.values(), 0)
    if uses_tproxy(options):
        found["marked"] = 0
    for each in connections:
        if each.redirected and each.port in names:
            found[names[each.port]] += 1
        elif "marked" in found and each.mark == options.istio_inbound_tproxy_mark:
            found["marked"] += 1
    return found
