"""A Firewall and a Router that hold everything in memory, may fail at a chosen change, and note what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import KernelError
from istio_init.log import Log
from istio_init.model.ownership import own_part
from istio_init.model.placement import merged
from istio_init.model.rules import FAMILIES, Ruleset, Table, ordered
from istio_init.planning.changes import NamespaceState

if TYPE_CHECKING:
    from istio_init.model.routing import Address, RoutingEntry
    from istio_init.model.rules import Family, TableName
    from istio_init.planning.plan import Plan


class Memory:
    """A namespace: tables and routing. `fail_at` counts changes from 1 and refuses that one; all are in `changes`."""

    def __init__(self, fail_at: int = 0) -> None:
        self.tables: dict[tuple[Family, TableName], Table] = {}
        self.routing: tuple[RoutingEntry, ...] = ()
        self.fail_at = fail_at
        self.changes: list[str] = []
        self.reads: list[str] = []

    @property
    def firewall(self) -> MemoryFirewall:
        """The namespace's Firewall."""
        return MemoryFirewall(self)

    @property
    def router(self) -> MemoryRouter:
        """The namespace's Router."""
        return MemoryRouter(self)

    def change(self, what: str) -> None:
        """Note a change, or refuse it."""
        self.changes.append(what)
        if len(self.changes) == self.fail_at:
            raise KernelError(f"refused: {what}")

    def rulesets(self) -> tuple[Ruleset, ...]:
        """All rules, both families."""
        return tuple(self.firewall.read(family) for family in FAMILIES)

    def state(self) -> NamespaceState:
        """All that exists."""
        return NamespaceState(self.rulesets(), self.routing)

    def hold(self, plan: Plan) -> None:
        """Put a plan in place, as another run has written it."""
        for ruleset in plan.rulesets:
            for table in ruleset.tables:
                result = self.tables.get((ruleset.family, table.name)) or empty(table.name)
                self.tables[ruleset.family, table.name] = merged(result, table)
        self.routing += tuple(entry for entry in plan.routing if entry not in self.routing)

    def held(self) -> tuple[dict[tuple[Family, TableName], Table], set[RoutingEntry]]:
        """All that exists, for comparisons: an empty table is as good as none, and routing has no order."""
        return {key: table for key, table in self.tables.items() if table != empty(table.name)}, set(self.routing)

    def ours(self) -> bool:
        """Whether anything of Istio's exists."""
        return any(own_part(table) for table in self.tables.values())


class MemoryFirewall:
    """kernel.Firewall."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """As Firewall.read."""
        self.memory.reads.append(f"read {family}")
        names: tuple[TableName, ...] = ("raw", "mangle", "nat", "filter", "security")
        tables = (self.memory.tables.get((family, name)) for name in names)
        return Ruleset(family, tuple(table for table in tables if table))

    def replace(self, family: Family, desired: Table) -> None:
        """As Firewall.replace."""
        self.memory.change(f"{family} {desired.name}")
        result = self.memory.tables.get((family, desired.name)) or empty(desired.name)
        self.memory.tables[family, desired.name] = merged(result, desired)

    def remove(self, family: Family, name: TableName, desired: Table | None = None) -> None:
        """As Firewall.remove."""
        self.memory.change(f"{family} {name} removed")
        if result := self.memory.tables.get((family, name)):
            self.memory.tables[family, name] = without_ours(result, desired)


class MemoryRouter:
    """kernel.Router."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def read(self) -> tuple[RoutingEntry, ...]:
        """As Router.read."""
        self.memory.reads.append("read routing")
        return self.memory.routing

    def replace(self, desired: tuple[RoutingEntry, ...], existing: tuple[RoutingEntry, ...] | None = None) -> None:
        """As Router.replace."""
        for entry in desired:
            if entry not in self.memory.routing:
                self.memory.change(f"add {type(entry).__name__}")
                self.memory.routing += (entry,)

    def remove(self, entries: tuple[RoutingEntry, ...]) -> None:
        """As Router.remove."""
        for entry in reversed(entries):
            if entry in self.memory.routing:
                self.memory.change(f"drop {type(entry).__name__}")
                self.memory.routing = tuple(each for each in self.memory.routing if each != entry)

    def addresses(self) -> tuple[Address, ...]:
        """As Router.addresses."""
        return ()


class Lines(Log):
    """A log that is kept."""

    def __init__(self) -> None:
        super().__init__("debug")
        self.lines: list[str] = []

    def _write(self, level: str, message: str) -> None:
        self.lines.append(f"{level}: {message}")


def empty(name: TableName) -> Table:
    """A table as the kernel creates it."""
    return Table(name, ordered(name, {}))


def without_ours(table: Table, desired: Table | None) -> Table:
    """A table with what is ours taken out; rules that equal `wanted` ones are known as ours where nobody signed."""
    from istio_init.model.ownership import recognised

    return merged(recognised(table, desired), None)
