"""The edge of the program: the only package that talks to the kernel.

A Firewall holds rules, a Router holds policy rules, routes and addresses. Both speak intent in the same
three verbs: read, replace, remove. Errors of the operating system are translated here and nowhere else.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from istio_init.model.compare import TableChange
    from istio_init.model.routing import Address, RoutingEntry
    from istio_init.model.rules import Family, Ruleset, Table, TableName

    class Firewall(Protocol):
        """Rules in the kernel of the calling thread's network namespace."""

        def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
            """All existing tables of the family, including other programs' rules. Creates no table.

            `expecting` is what the caller hopes to find. It may make reading faster, and where the kernel does not
            keep what a rule was written as (a set tells nothing of order and overlaps), it says which of the
            rulesets that mean the same is read.
            KernelError where the kernel refuses.
            """
            ...

        def replace(self, family: Family, desired: Table) -> None:
            """Bring Istio's rules in one table to `desired`, in one atomic commit.

            Other programs' chains and rules are kept in their order (ownership.edit determines the position of Istio's
            rules). Creates the table if it does not exist. KernelError leaves it unchanged.
            """
            ...

        def remove(self, family: Family, name: TableName, unsigned: Table | None = None) -> None:
            """Remove Istio's rules from one table, in one atomic commit; does nothing where there are none.

            Rules that equal those of `unsigned` count as Istio's even without a signature. KernelError leaves the
            table as it was.
            """
            ...

    class Restoring(Firewall, Protocol):
        """A Firewall that can put Istio's rules back to their places among other programs' rules."""

        def restore(self, family: Family, desired: Table, like: Table) -> None:
            """As `replace`, with each rule where it was in the earlier state `like` (ownership.edit)."""
            ...

    class Transactional(Firewall, Protocol):
        """A Firewall that can write any number of tables, of both families, at once."""

        def write(self, changes: tuple[TableChange, ...]) -> None:
            """All the changes, each as `replace` or `remove` makes it, in one commit.

            KernelError leaves all as it was.
            """
            ...

    class Router(Protocol):
        """Policy rules, routes and addresses of the calling thread's network namespace."""

        def read(self) -> tuple[RoutingEntry, ...]:
            """Every entry of the kinds in routing.py that exists.

            Policy rules that have a full-mask fwmark and a table and nothing else, local default routes outside
            the tables local and main, and all addresses of lo.
            """
            ...

        def replace(self, desired: tuple[RoutingEntry, ...], existing: tuple[RoutingEntry, ...] | None = None) -> None:
            """Add those of `desired` that don't exist yet, in order. KernelError names the entry that was refused.

            `existing` is what has just been read, if it has been.
            """
            ...

        def remove(self, entries: tuple[RoutingEntry, ...]) -> None:
            """Take these away, last first; one that does not exist is fine. KernelError names what was refused."""
            ...

        def addresses(self) -> tuple[Address, ...]:
            """All addresses of all interfaces as the kernel dumps them: IPv4 first, by interface."""
            ...
