"""Applies a plan as one transaction through the Protocols of kernel/: completely, or not at all.

The caller holds the xtables lock. After an error or a signal the previous state is restored: the tables of each
written backend, with the exact order of their rules, and routing.
"""

from __future__ import annotations

from _io import BufferedReader, BytesIO  # the C half of io, whose other half Python 3.14 does not load by itself

from istio_init.errors import KernelError
from istio_init.model.compare import TableChange, drifted_tables
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


NEITHER = (
    "the namespace has neither the previous state nor the plan: run again with --reconcile, or with --cleanup-only to "
    "remove all Istio rules"
)
# Bytes of memory that are kept for undoing changes: a limit may be reached at any moment. They are not touched.
RESERVE = 6 << 20


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
    """Apply the plan to the namespace; returns the changes in `firewall`, empty if the plan was in place.

    Istio rules in `others`, the Firewalls of other backends by name, are removed in the same transaction. Raises
    Drifted if different Istio rules exist and `reconcile` is off, KernelError if the kernel refuses; the namespace is
    then as before, or the error's notes describe it. With `warn`, other programs' rules that take precedence over
    Istio's are logged. `on_commit` is called last, while a rollback is still possible: for callers that turn signals
    into exceptions.
    """
    if others:
        from istio_init.runner import move

        changes_of_move = move.apply(
            plan, firewall, router, log, others, reconcile=reconcile, force=force, on_commit=on_commit
        )
        if changes_of_move is not None:
            return changes_of_move
    current = observe(plan, firewall, router, reconcile=reconcile)
    changes = decide(plan, current, reconcile=reconcile, force=force)
    if changes:
        log.debug(f"writing: {changes.why}")
        transaction = Transaction(router, log, on_commit)
        transaction.perform((Write(firewall, changes.tables, current),), changes, current, check=plan, chosen=firewall)
    if warn:
        warn_of_precedence(plan, current, log)
    if warn and reconcile:
        warn_of_other_families(plan, firewall, log)
    return changes


def warn_of_precedence(plan: Plan, current: NamespaceState, log: Log) -> None:
    """Log other programs' rules that keep packets from Istio's; `current` is the state before the apply."""
    shared = any(
        not rule.ours
        for planned in plan.rulesets
        for table in current.ruleset(planned.family).tables
        if table is not planned.table(table.name)
        for chain in table.chains
        if chain.policy is not None
        for rule in chain.rules
    )
    if shared:
        try:
            from istio_init.simulate.precedence import precedences_after

            for each in precedences_after(plan.rulesets, current.rulesets):
                log.warn(each.text)
        except (ImportError, MemoryError, OSError, RecursionError) as error:
            # The plan is applied: a warning that can't be computed does not end the run.
            log.warn(f"other programs' rules before Istio's: can't be checked: {str(error) or type(error).__name__}")


def warn_of_other_families(plan: Plan, firewall: Firewall, log: Log) -> None:
    """Log which families without rules in the plan have Istio rules, which a run leaves as they are."""
    others = tuple(firewall.read(family) for family in FAMILIES if plan.ruleset(family) is None)
    if others:
        from istio_init.planning.other_families import unplanned

        for text in unplanned(plan, others):
            log.warn(text)


def observe(plan: Plan, firewall: Firewall, router: Router, *, reconcile: bool) -> NamespaceState:
    """The state of the plan's families.

    Routing is read if the rules need it, or if an interrupted reconcile may have left some.
    """
    if (expect := getattr(firewall, "expect", None)) is not None:
        expect(plan.rulesets)
    rulesets = tuple(firewall.read(planned.family, planned) for planned in plan.rulesets)
    return NamespaceState(rulesets, router.read() if reconcile or routing_matters(plan, rulesets) else ())


def routing_matters(plan: Plan, rulesets: tuple[Ruleset, ...]) -> bool:
    """Whether the plan has routing, or existing TPROXY rules need some."""
    used_tproxy = any(table.chain("ISTIO_TPROXY") for ruleset in rulesets for table in ruleset.tables)
    return used_tproxy or bool(plan.routing)


class Write:
    """Tables of one Firewall to write, and its previous state; written one by one if it has no `write`.

    `name` is the backend's, empty for the chosen one. Not a Record, since making each Record class costs start time.
    """

    __slots__ = ("before", "changes", "firewall", "name")

    def __init__(
        self, firewall: Firewall, changes: tuple[TableChange, ...], before: NamespaceState, name: str = ""
    ) -> None:
        self.firewall, self.changes, self.before, self.name = firewall, changes, before, name


class Transaction:
    """Changes to rules, in one or several backends, and to routing: all are made, or none."""

    def __init__(self, router: Router, log: Log, on_commit: Callable[[], None] = do_nothing) -> None:
        """`on_commit` is called after the last change, while a rollback is still possible."""
        self._router, self._log, self._on_commit = router, log, on_commit
        # The started writes; each is one table if the Firewall has no `write`.
        self._begun: list[Write] = []

    def perform(  # noqa: PLR0913 (each by its name)
        self,
        writes: tuple[Write, ...],
        routing: Changes,
        current: NamespaceState,
        *,
        check: Plan | None = None,
        chosen: Firewall | None = None,
        verify: Callable[[], None] = do_nothing,
    ) -> None:
        """Make all changes, with `routing` once for all writes; with `check`, verify that `chosen` holds the plan.

        Any failure rolls everything back. `current` has the previous routing; `verify` may check further.
        MemoryError, before anything is written, where there is too little memory to undo it.
        """
        # A buffer that is allocated and not touched. A bytearray is wiped, which takes as long as writing the rules.
        reserve = BufferedReader(BytesIO(), RESERVE)
        try:
            for entry in routing.add:
                self._log.info(f"routing: {command(entry)}")
            self._router.replace(routing.add, current.routing)
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
            del reserve
            try:
                from istio_init.runner.rollback import roll_back

                roll_back(tuple(self._begun), routing, current, self._router, self._log, error, check)
            except BaseException as failure:
                failure.outcome = NEITHER  # type: ignore[attr-defined] # (whatever it is, nothing is known)
                raise
            raise

    def _write(self, write: Write) -> None:
        """Write all tables: in one batch if the firewall supports it, else one by one.

        A write is recorded before it is made, since a signal may arrive in between; undoing nothing is harmless.
        """
        for change in write.changes:
            self._log.info(_announcement(change, write.name))
        write_all = getattr(write.firewall, "write", None)
        if write_all is not None:
            self._begun.append(write)
            write_all(write.changes)
            return
        for change in write.changes:
            self._begun.append(Write(write.firewall, (change,), write.before, write.name))
            if change.desired is None:
                write.firewall.remove(change.family, change.name, change.unsigned)
            elif change.like is not None and hasattr(write.firewall, "restore"):
                write.firewall.restore(change.family, change.desired, change.like)
            else:
                write.firewall.replace(change.family, change.desired)

    def _verify(self, plan: Plan, firewall: Firewall) -> None:
        """Read back and compare; KernelError if the kernel's rules differ from the plan."""
        for planned in plan.rulesets:
            there = firewall.read(planned.family, planned)
            if any(drifted_tables(planned, there)):
                from istio_init.planning.drift_text import first_difference

                raise KernelError(
                    f"the kernel's rules differ from what was written: {first_difference(planned, there)};"
                    " is another program editing the tables?"
                )
        if plan.routing:
            existing = self._router.read()
            for entry in plan.routing:
                if entry not in existing:
                    raise KernelError(f"the kernel's routing differs from what was written: missing: {command(entry)}")


def _announcement(change: TableChange, backend: str) -> str:
    where = f"{backend} {change.family} {change.name}" if backend else f"{change.family} {change.name}"
    if change.desired is None:
        return f"{where}: removing Istio rules"
    return f"{where}: writing {change.desired.count} rules"


def summary(changes: Changes, rulesets: tuple[Ruleset, ...]) -> str:
    """The result of a run in one line: the number of rules in each table."""
    if not changes:
        return "in place, nothing written"
    counts = [f"{ruleset.family} {table.name} {table.count}" for ruleset in rulesets for table in ruleset.tables]
    return f"applied ({changes.why}): rules {', '.join(counts)}"
