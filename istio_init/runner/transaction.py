"""Apply a plan as one transaction, over the Protocols of kernel/: all of it, or nothing.

The caller holds the xtables lock. Whatever ends a run early (an error, a signal) restores the previous state: tables
with the exact order of their rules, of each backend that was written, and routing.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.model.compare import TableChange, differences
from istio_init.model.routing import command
from istio_init.model.rules import FAMILIES
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
    others: tuple[tuple[str, Firewall], ...] = (),
    warn: bool = False,
) -> Changes:
    """Bring the namespace to the plan; returns what was changed in `firewall`, which is nothing where it was in place.

    Istio rules in `others`, the Firewalls of other backends by name, are removed in the same transaction. Drifted
    where different Istio rules exist and `reconcile` is off, KernelError where the kernel refuses; the namespace is
    then as before, or the error's notes say what it is. With `warn`, rules of other programs are logged that decide
    before Istio's. `on_commit` is called last of all, when everything can still be undone: for callers that turn
    signals into exceptions.
    """
    if others:
        from istio_init.runner import move

        moved = move.apply(plan, firewall, router, log, others, reconcile=reconcile, force=force, on_commit=on_commit)
        if moved is not None:
            return moved
    found = observe(plan, firewall, router, reconcile=reconcile)
    changes = decide(plan, found, reconcile=reconcile, force=force)
    if changes:
        log.debug(f"writing: {changes.why}")
        transaction = Transaction(router, log, on_commit)
        transaction.perform((Write(firewall, changes.tables, found),), changes, found, check=plan, chosen=firewall)
    if warn:
        warn_of_precedence(plan, found, log)
    if warn and reconcile:
        warn_of_other_families(plan, firewall, log)
    return changes


def warn_of_precedence(plan: Plan, found: NamespaceState, log: Log) -> None:
    """Log each rule of another program that keeps packets from Istio's rules; `found` is the state before them."""
    shared = any(
        not rule.ours
        for wanted in plan.rulesets
        for table in found.ruleset(wanted.family).tables
        if table is not wanted.table(table.name)
        for chain in table.chains
        if chain.policy is not None
        for rule in chain.rules
    )
    if shared:
        try:
            from istio_init.simulate.precedence import precedences_after

            for each in precedences_after(plan.rulesets, found.rulesets):
                log.warn(each.text)
        except (ImportError, MemoryError, OSError, RecursionError) as error:
            # The plan is applied: that a warning can't be worked out does not end the run.
            log.warn(f"other programs' rules before Istio's: can't be looked for: {str(error) or type(error).__name__}")


def warn_of_other_families(plan: Plan, firewall: Firewall, log: Log) -> None:
    """Log which families without rules in the plan have Istio rules, which a run leaves as they are."""
    others = tuple(firewall.read(family) for family in FAMILIES if plan.ruleset(family) is None)
    if others:
        from istio_init.planning.other_families import unplanned

        for text in unplanned(plan, others):
            log.warn(text)


def observe(plan: Plan, firewall: Firewall, router: Router, *, reconcile: bool) -> NamespaceState:
    """The state of the plan's families.

    Routing is read where it matters, and where an interrupted reconcile may have left some.
    """
    if (expect := getattr(firewall, "expect", None)) is not None:
        expect(plan.rulesets)
    rulesets = tuple(firewall.read(wanted.family, wanted) for wanted in plan.rulesets)
    return NamespaceState(rulesets, router.read() if reconcile or routing_matters(plan, rulesets) else ())


def routing_matters(plan: Plan, rulesets: tuple[Ruleset, ...]) -> bool:
    """Whether the plan has routing, or existing TPROXY rules need some."""
    used_tproxy = any(table.chain("ISTIO_TPROXY") for ruleset in rulesets for table in ruleset.tables)
    return used_tproxy or bool(plan.routing)


class Write:
    """Tables of one Firewall to write, and its state before; one after the other where it has no `write`.

    `name` is that of another backend than the chosen one. No Record: each of those costs a start.
    """

    __slots__ = ("before", "changes", "firewall", "name")

    def __init__(
        self, firewall: Firewall, changes: tuple[TableChange, ...], before: NamespaceState, name: str = ""
    ) -> None:
        self.firewall, self.changes, self.before, self.name = firewall, changes, before, name


class Transaction:
    """Changes to rules, in one or several backends, and to routing that are all made, or none."""

    def __init__(self, router: Router, log: Log, on_commit: Callable[[], None] = do_nothing) -> None:
        """`on_commit` is called when all is done, while everything can still be undone."""
        self._router, self._log, self._on_commit = router, log, on_commit
        # The writes that were at least begun: of a Firewall without `write`, a table each.
        self._begun: list[Write] = []

    def perform(  # noqa: PLR0913 (each by its name)
        self,
        writes: tuple[Write, ...],
        routing: Changes,
        found: NamespaceState,
        *,
        check: Plan | None = None,
        chosen: Firewall | None = None,
        verify: Callable[[], None] = do_nothing,
    ) -> None:
        """Make all changes, those of `routing` once for all writes; with `check`, see that `chosen` holds the plan.

        Where anything fails, everything is undone. `found` has the routing before, `verify` may check further.
        """
        try:
            for entry in routing.add:
                self._log.info(f"routing: {command(entry)}")
            self._router.replace(routing.add, found.routing)
            for write in writes:
                self._write(write)
            for entry in routing.drop:
                self._log.info(f"routing: {command(entry, 'del')}")
            self._router.remove(routing.drop)
            if check is not None and chosen is not None:
                self._verify(check, chosen)
            verify()
            self._on_commit()
        except BaseException as error:
            from istio_init.runner.rollback import roll_back

            roll_back(tuple(self._begun), routing, found, self._router, self._log, error, check)
            raise

    def _write(self, write: Write) -> None:
        """Write all tables: in one batch where the firewall can, else one after the other.

        A write is noted before it is made: a signal may arrive in between, and undoing nothing is harmless.
        """
        for change in write.changes:
            self._log.info(_announcement(change, write.name))
        together = getattr(write.firewall, "write", None)
        if together is not None:
            self._begun.append(write)
            together(write.changes)
            return
        for change in write.changes:
            self._begun.append(Write(write.firewall, (change,), write.before, write.name))
            if change.wanted is None:
                write.firewall.remove(change.family, change.name, change.known)
            elif change.like is not None and hasattr(write.firewall, "restore"):
                write.firewall.restore(change.family, change.wanted, change.like)
            else:
                write.firewall.replace(change.family, change.wanted)

    def _verify(self, plan: Plan, firewall: Firewall) -> None:
        """Read back and compare; KernelError where the kernel does not hold the plan."""
        for wanted in plan.rulesets:
            for difference in differences(wanted, firewall.read(wanted.family, wanted)):
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


def _announcement(change: TableChange, backend: str) -> str:
    where = " ".join(word for word in (backend, change.family, change.name) if word)
    if change.wanted is None:
        return f"{where}: removing Istio rules"
    count = sum(chain.count for chain in change.wanted.chains)
    return f"{where}: writing {count} rules"


def summary(changes: Changes, rulesets: tuple[Ruleset, ...]) -> str:
    """What a run did, in one line: how many rules are in which tables."""
    if not changes:
        return "in place, nothing written"
    counts = (
        f"{ruleset.family} {table.name} {sum(chain.count for chain in table.chains)}"
        for ruleset in rulesets
        for table in ruleset.tables
    )
    return f"applied ({changes.why}): rules {', '.join(counts)}"
