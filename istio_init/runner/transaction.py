"""The verbs, over the Protocols of kernel/: apply a plan, clean up. Each is a transaction.

The caller holds the xtables lock. Whatever ends a verb early (an error, a signal) puts back what stood before.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.model.compare import TableChange, differences, own_part
from istio_init.model.routing import command
from istio_init.planning.changes import Changes, NamespaceState, decide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.kernel import Firewall, Router
    from istio_init.log import Log
    from istio_init.model.rules import Ruleset
    from istio_init.planning.plan import Plan


def do_nothing() -> None:
    """Do nothing."""


def apply(  # noqa: PLR0913 (what to work with, and each wish by its name)
    plan: Plan,
    firewall: Firewall,
    router: Router,
    log: Log,
    *,
    reconcile: bool = False,
    force: bool = False,
    on_commit: Callable[[], None] = do_nothing,
) -> Changes:
    """Bring the namespace to the plan; returns what was changed, which is nothing where it was in place.

    Drifted where other rules of ours stand and `reconcile` is off, KernelError where the kernel refuses;
    after either the namespace is as it was. `on_commit` is called when all is done, as the last thing that may
    still end in everything being put back: for whoever turns signals into exceptions.
    """
    found = observe(plan, firewall, router, reconcile=reconcile)
    changes = decide(plan, found, reconcile=reconcile, force=force)
    if changes:
        log.debug(f"writing: {changes.why}")
        Transaction(firewall, router, log, on_commit).perform(changes, found, check=plan)
    return changes


def observe(plan: Plan, firewall: Firewall, router: Router, *, reconcile: bool) -> NamespaceState:
    """What stands in the plan's families.

    Routing is looked at where it matters, and where a reconcile that was cut short may have left some.
    """
    if (expect := getattr(firewall, "expect", None)) is not None:
        expect(plan.rulesets)
    rulesets = tuple(firewall.read(wanted.family, wanted) for wanted in plan.rulesets)
    return NamespaceState(rulesets, router.read() if reconcile or routing_matters(plan, rulesets) else ())


def routing_matters(plan: Plan, rulesets: tuple[Ruleset, ...]) -> bool:
    """Whether the plan has routing, or TPROXY rules of ours that stand need some."""
    used_tproxy = any(table.chain("ISTIO_TPROXY") for ruleset in rulesets for table in ruleset.tables)
    return used_tproxy or bool(plan.routing)


class Transaction:
    """Changes to rules and routing that are all made, or none."""

    def __init__(
        self, firewall: Firewall, router: Router, log: Log, on_commit: Callable[[], None] = do_nothing
    ) -> None:
        """`on_commit` is called when all is done, while everything can still be put back."""
        self._firewall, self._router, self._log, self._on_commit = firewall, router, log, on_commit
        # The table changes that were at least begun.
        self._begun: list[TableChange] = []

    def perform(self, changes: Changes, found: NamespaceState, *, check: Plan | None = None) -> None:
        """Carry changes out; with `check`, see that the kernel holds the plan then. Where anything fails, put all back.

        `found` is what stands before.
        """
        try:
            for entry in changes.add:
                self._log.info(f"routing: {command(entry)}")
            self._router.replace(changes.add, found.routing)
            self._write(changes.tables)
            for entry in changes.drop:
                self._log.info(f"routing: {command(entry, 'del')}")
            self._router.remove(changes.drop)
            if check is not None:
                self._verify(check)
            self._on_commit()
        except BaseException as error:
            self._put_back(changes, found, error)
            raise

    def _write(self, changes: tuple[TableChange, ...]) -> None:
        """Write all tables: in one transaction where the firewall has such, else one after the other.

        What may have been done is noted before it is: a signal may come between the two, and undoing nothing is
        harmless.
        """
        for change in changes:
            self._log.info(_announcement(change))
        together = getattr(self._firewall, "write", None)
        if together is not None:
            self._begun.extend(changes)
            try:
                together(changes)
            except KernelError:
                # All or nothing, and it is nothing.
                self._begun.clear()
                raise
            return
        for change in changes:
            self._begun.append(change)
            if change.wanted is None:
                self._firewall.remove(change.family, change.name, change.known)
            else:
                self._firewall.replace(change.family, change.wanted)

    def _verify(self, plan: Plan) -> None:
        """Read back and compare; KernelError where the kernel does not hold the plan."""
        for wanted in plan.rulesets:
            for difference in differences(wanted, self._firewall.read(wanted.family, wanted)):
                from istio_init.planning.drift_text import difference_text

                text = difference_text(wanted.family, difference)
                raise KernelError(
                    f"the kernel does not hold what was written: {text}; is another program editing the tables?"
                )
        if plan.routing:
            existing = self._router.read()
            for entry in plan.routing:
                if entry not in existing:
                    raise KernelError(f"the kernel does not hold what was written: missing: {command(entry)}")

    def _put_back(self, changes: Changes, found: NamespaceState, error: BaseException) -> None:
        """Undo, last first; what can't be undone is said, and the first error stays the one that ends the run."""
        self._log.info("restoring the previous state")
        added = tuple(entry for entry in changes.add if entry not in found.routing)
        # As before, routing is there before the rules that need it, and goes after them.
        steps: list[Callable[[], None]] = [lambda: self._router.replace(changes.drop)]
        steps += [self._restoring(change, found) for change in reversed(self._begun)]
        steps.append(lambda: self._router.remove(added))
        failures: list[str] = []
        for step in steps:
            try:
                step()
            except Exception as failure:  # noqa: BLE001 (whatever is wrong with it, the other steps are taken, too)
                failures.append(str(failure))
        if failures:
            self._log.error(f"the previous state could not be restored completely: {'; '.join(failures)}")
            error.add_note("the namespace is not as it was")

    def _restoring(self, change: TableChange, found: NamespaceState) -> Callable[[], None]:
        """The step that undoes the change of a table."""
        before = found.table(change.family, change.name)
        own = own_part(before, change.known) if before else None
        if own:
            return lambda: self._firewall.replace(change.family, own)
        return lambda: self._firewall.remove(change.family, change.name, change.wanted)


def _announcement(change: TableChange) -> str:
    if change.wanted is None:
        return f"{change.family} {change.name}: removing Istio rules"
    count = sum(chain.count for chain in change.wanted.chains)
    return f"{change.family} {change.name}: writing {count} rules"


def summary(changes: Changes, rulesets: tuple[Ruleset, ...]) -> str:
    """What a run did, in one line: how many rules stand in which tables."""
    if not changes:
        return "in place, nothing written"
    counts = (
        f"{ruleset.family} {table.name} {sum(chain.count for chain in table.chains)}"
        for ruleset in rulesets
        for table in ruleset.tables
    )
    return f"applied ({changes.why}): rules {', '.join(counts)}"
