"""Removes all Istio rules from every backend's tables, and Istio's routing, in one transaction.

The caller holds the xtables lock.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.probe.leftovers import named_leftovers
from istio_init.model.rules import FAMILIES
from istio_init.planning.changes import Changes, NamespaceState
from istio_init.planning.removal import has_unsigned_rules, removal
from istio_init.runner.transaction import Transaction, Write, do_nothing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.kernel import Firewall, Router
    from istio_init.log import Log
    from istio_init.planning.plan import Plan


def clean(  # noqa: PLR0913 (what to work with, each by its name)
    plan: Plan,
    firewall: Firewall,
    router: Router,
    log: Log,
    *,
    on_commit: Callable[[], None] = do_nothing,
    others: tuple[tuple[str, Firewall], ...] = (),
    chosen: str = "legacy",
) -> Changes:
    """Remove all Istio rules and routing of both families; returns the changes.

    `plan`, made from the current options, identifies Istio rules without a signature. `others` are the Firewalls of
    other backends by name; they are cleaned first. `chosen` is the name of `firewall`'s backend. `on_commit` is the
    same as in transaction.apply.
    """
    states = [(name, each, rules_of(each)) for name, each in (*others, ("", firewall))]
    elsewhere = tuple(ruleset for _, _, state in states[:-1] for ruleset in state.rulesets)
    current = states[-1][2].replace(routing=router.read())
    changes = removal(current, plan, elsewhere, releases=True)
    tables = {name: removal(state, plan, releases=True).tables for name, _, state in states}
    writes = tuple(Write(each, tables[name], state, name) for name, each, state in states if tables[name])
    everything = changes.replace(tables=tuple(change for each in tables.values() for change in each))
    if everything:

        def verify() -> None:
            for write in writes:
                if removal(rules_of(write.firewall), plan, releases=True).tables:
                    raise KernelError(
                        "Istio rules exist again after they were removed: is another program editing the tables?"
                    )

        Transaction(router, log, on_commit).perform(writes, changes, current, verify=verify)
    _name_suspects(states, chosen, log)
    return everything


def _name_suspects(states: list[tuple[str, Firewall, NamespaceState]], chosen: str, log: Log) -> None:
    """Log the rules that may be Istio's or another program's, each with the command that removes it."""
    for name, _, state in states:
        backend = name or chosen
        if backend == "native" or not has_unsigned_rules(state.rulesets):
            continue
        from istio_init.planning.earlier_releases import suspects

        for each in suspects(state.rulesets):
            log.warn(
                f"not removed: {backend} {each.family} {each.table} {each.chain} {each.text}: Istio's "
                f"releases and other programs both make such rules; to remove it: {each.command(backend)}"
            )
    for what, command in named_leftovers():
        log.warn(f"left as it is: {what}: of Istio's ambient mode, by its name; to remove it: {command}")


def rules_of(firewall: Firewall) -> NamespaceState:
    """The rules of a Firewall, without routing."""
    return NamespaceState(tuple(firewall.read(family) for family in FAMILIES))
