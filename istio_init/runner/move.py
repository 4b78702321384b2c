"""Moves Istio rules from other backends' tables to the chosen one, in one transaction (planning/move.py).

The caller holds the xtables lock.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.planning.changes import decide
from istio_init.planning.move import is_unfinished, phases
from istio_init.planning.removal import removal
from istio_init.runner.cleanup import rules_of
from istio_init.runner.transaction import Transaction, Write, observe, warn_of_other_families, warn_of_precedence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.kernel import Firewall, Router
    from istio_init.log import Log
    from istio_init.planning.changes import Changes
    from istio_init.planning.plan import Plan


def apply(  # noqa: PLR0913 (what to work with, and each wish by its name)
    plan: Plan,
    firewall: Firewall,
    router: Router,
    log: Log,
    others: tuple[tuple[str, Firewall], ...],
    *,
    reconcile: bool,
    force: bool,
    on_commit: Callable[[], None],
) -> Changes | None:
    """The same as transaction.apply; None if the other backends have no Istio rules.

    Drifted if they have and `reconcile` is off, unless an earlier run was killed during such a move.
    """
    states = {name: rules_of(each) for name, each in others}
    elsewhere = tuple((name, state) for name, state in states.items() if removal(state, plan).tables)
    if not elsewhere:
        return None
    rulesets = tuple(ruleset for _, state in elsewhere for ruleset in state.rulesets)
    current = observe(plan, firewall, router, reconcile=True)
    names = " and ".join(name for name, _ in elsewhere)
    if not (reconcile or is_unfinished((*current.rulesets, *rulesets))):
        from istio_init.errors_rare import Drifted

        raise Drifted(
            f"Istio rules also exist in the {names} tables, and would capture packets a second time: "
            "--reconcile moves them over, --cleanup-only removes them"
        )
    changes = decide(plan, current, reconcile=True, force=force, others=rulesets)
    steps, routing = phases(plan, current, changes, elsewhere)
    firewalls = {"": firewall, **dict(others)}
    writes = tuple(Write(firewalls[step.backend], step.changes, step.before, step.backend) for step in steps)
    log.info(f"Istio rules also exist in the {names} tables; moving them")

    def verify() -> None:
        for name, _ in elsewhere:
            if removal(rules_of(firewalls[name]), plan).tables:
                raise KernelError(f"Istio rules exist in the {name} tables again: is another program editing them?")

    Transaction(router, log, on_commit).perform(writes, routing, current, check=plan, chosen=firewall, verify=verify)
    warn_of_precedence(plan, current, log)
    warn_of_other_families(plan, firewall, log)
    written = tuple(change for step in steps for change in step.changes)
    why = changes.why if changes else "reconciling"
    return routing.replace(tables=written, why=why)
