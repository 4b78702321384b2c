"""Taking away what is ours: all of it, or what stands in tables that are not to have any; each is a transaction.

The caller holds the xtables lock.
"""

from __future__ import annotations

from istio_init.model.rules import FAMILIES
from istio_init.planning.changes import NamespaceState
from istio_init.planning.removal import removal
from istio_init.runner.transaction import Transaction, do_nothing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_init.kernel import Firewall, Router
    from istio_init.log import Log
    from istio_init.planning.changes import Changes
    from istio_init.planning.plan import Plan


def clean(
    plan: Plan, firewall: Firewall, router: Router, log: Log, *, on_commit: Callable[[], None] = do_nothing
) -> Changes:
    """Take everything of ours away, in both families, all tables and routing; returns what was changed.

    `plan` is that of today's options: it only helps to know rules of ours that bear no signature. `on_commit` is
    as apply's.
    """
    found = NamespaceState(tuple(firewall.read(family) for family in FAMILIES), router.read())
    changes = removal(found, plan)
    if changes:
        Transaction(firewall, router, log, on_commit).perform(changes, found)
    return changes


def require_single_backend(plan: Plan, others: Sequence[tuple[str, Firewall]]) -> None:
    """Drifted where rules of ours stand in other tables than those that are to be written."""
    for name, firewall in others:
        if removal(_rules(firewall), plan):
            from istio_init.errors_rare import Drifted

            raise Drifted(
                f"Istio rules also exist in the {name} tables, and would capture packets a second time: "
                "--reconcile moves them over, --cleanup-only removes them"
            )


def withdraw(plan: Plan, others: Sequence[tuple[str, Firewall]], router: Router, log: Log) -> None:
    """Take our rules, but no routing, out of firewalls that are not to have any."""
    for name, firewall in others:
        found = _rules(firewall)
        changes = removal(found, plan)
        if changes:
            log.info(f"Istio rules also exist in the {name} tables")
            Transaction(firewall, router, log).perform(changes, found)


def _rules(firewall: Firewall) -> NamespaceState:
    """What stands in a firewall, without any routing."""
    return NamespaceState(tuple(firewall.read(family) for family in FAMILIES))
