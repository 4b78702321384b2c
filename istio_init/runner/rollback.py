"""Rolls back a transaction: every table of each backend, in the exact order of its rules, and routing.

Signals are blocked meanwhile. The kernel's present state decides what to undo, since a call's outcome may be unknown.
"""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.model.compare import TableChange, drifted_tables
from istio_init.model.ownership import own_part
from istio_init.model.routing import command
from istio_init.runner.transaction import NEITHER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from istio_init.kernel import Firewall, Router
    from istio_init.log import Log
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, Table, TableName
    from istio_init.planning.changes import Changes, NamespaceState
    from istio_init.planning.plan import Plan
    from istio_init.runner.transaction import Write
else:
    # The C half of signal; the module around it imports enum.
    import _signal

AS_BEFORE = "the namespace is as before"
NEIGHBOURS = (
    "the namespace is as before, except for other programs' changes meanwhile in {}; Istio rules follow the same rules "
    "as before"
)
THE_PLAN = "the namespace has the plan"
SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGALRM)


def roll_back(  # noqa: PLR0913, PLR0917 (what was done, what was there, with what, and why)
    started: tuple[Write, ...],
    routing: Changes,
    current: NamespaceState,
    router: Router,
    log: Log,
    error: BaseException,
    plan: Plan | None,
) -> None:
    """Undo the started writes, last first, and the routing; sets `outcome` of the error to the namespace's state.

    The outcome also becomes a note unless the previous state is restored. Signals are blocked until the end. A failed
    step is logged by name; the caller raises the original error.
    """
    before = _block_signals(error)
    try:
        log.info("restoring the previous state")
        undoing = _Rollback(started, routing, current, router)
        if failures := undoing.undo():
            log.error(f"the previous state could not be restored completely: {'; '.join(failures)}")
        outcome = undoing.state(plan)
        error.outcome = outcome  # type: ignore[attr-defined] # (whatever kind of error ended the run)
        if outcome != AS_BEFORE:
            error.add_note(outcome)
    finally:
        _restore_signals(before, error)


def _block_signals(error: BaseException) -> set[int]:
    """Block the signals that end a run; returns the previous mask. One that arrives meanwhile becomes a note."""
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
    except (InitError, KeyboardInterrupt) as late:  # its handler ran when the signals were blocked already
        error.add_note(str(late) or "interrupted")
    return before


def _restore_signals(mask: set[int], error: BaseException) -> None:
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    except (InitError, KeyboardInterrupt) as late:  # it waited; the run ends anyway
        error.add_note(str(late) or "interrupted")


class _Rollback:
    def __init__(self, started: tuple[Write, ...], routing: Changes, current: NamespaceState, router: Router) -> None:
        self._begun, self._routing, self._before, self._router = started, routing, current, router

    def undo(self) -> list[str]:
        """Undo everything; returns a message for each failed step.

        As in an apply, routing is added before the rules that need it, and removed after them.
        """
        added = tuple(entry for entry in self._routing.add if entry not in self._before.routing)
        steps: list[tuple[str, Callable[[], None]]] = [
            (_commands(self._routing.drop, "add"), lambda: self._router.replace(self._routing.drop)),
            *((_tables(write), lambda write=write: _undo(write)) for write in reversed(self._begun)),
            (_commands(added, "del"), lambda: self._router.remove(added)),
        ]
        failures: list[str] = []
        for what, step in steps:
            if not what:
                continue
            try:
                step()
            except Exception as failure:  # noqa: BLE001 (whatever is wrong with it, the other steps are taken, too)
                text = str(failure) or type(failure).__name__
                failures.append(text if isinstance(failure, InitError) else f"{what}: {text}")
        return failures

    def state(self, plan: Plan | None) -> str:
        """The namespace's state in words, with the remedy if it is neither the previous nor the planned one."""
        try:
            changed = self._changed()
            if changed is not None:
                return NEIGHBOURS.format(", ".join(changed)) if changed else AS_BEFORE
            return THE_PLAN if self._holds(plan) else NEITHER
        except Exception as error:  # noqa: BLE001 (whatever is wrong with it, the last line is said)
            return f"{NEITHER} (it could not be read: {str(error) or type(error).__name__})"

    def _changed(self) -> list[str] | None:
        """The tables in which only other programs' rules changed; None if Istio rules or the routing differ."""
        changed: list[str] = []
        first: dict[tuple[int, Family, TableName], tuple[Write, TableChange]] = {}
        for write in self._begun:
            for change in write.changes:
                first.setdefault((id(write.firewall), change.family, change.name), (write, change))
        for write, change in first.values():
            before = write.before.table(change.family, change.name)
            now = write.firewall.read(change.family).table(change.name)
            own_rules = change.unsigned or change.desired
            if not _same(before and own_part(before, own_rules), now and own_part(now, own_rules)):
                return None
            if not _same(before, now):
                changed.append(f"{change.family} {change.name}")
        return changed if self._routing_is_as_before() else None

    def _routing_is_as_before(self) -> bool:
        touched = {*self._routing.add, *self._routing.drop}
        if not touched:
            return True
        return touched.intersection(self._router.read()) == touched.intersection(self._before.routing)

    def _holds(self, plan: Plan | None) -> bool:
        """Whether the namespace has the plan: its rules and routing, and no Istio rules in other backends."""
        if plan is None:
            return all(
                not own_part(table)
                for write in self._begun
                for change in write.changes
                for table in write.firewall.read(change.family).tables
            )
        chosen = [write.firewall for write in self._begun if not write.name]
        in_place = chosen and not any(
            any(drifted_tables(planned, chosen[0].read(planned.family, planned))) for planned in plan.rulesets
        )
        return bool(in_place) and set(plan.routing) <= set(self._router.read())


def _same(before: Table | None, now: Table | None) -> bool:
    """Whether two tables have the same rules in the same order; an empty table equals a missing one."""
    chains = [
        {chain.name: (chain.rules, chain.policy) for chain in table.chains if chain.rules or chain.policy != "ACCEPT"}
        if table
        else {}
        for table in (before, now)
    ]
    return chains[0] == chains[1]


def _undo(write: Write) -> None:
    """Restore the tables of a write that differ from their previous state."""
    firewall = write.firewall
    pending = tuple(
        back
        for change in reversed(write.changes)
        if not _is_back(firewall, back := _reverse(change, write.before.table(change.family, change.name)))
    )
    write_all = getattr(firewall, "write", None)
    if write_all is not None:
        if pending:
            write_all(pending)
        return
    for back in pending:
        if back.desired is None:
            firewall.remove(back.family, back.name, back.unsigned)
        elif back.like is not None and (restore := getattr(firewall, "restore", None)):
            restore(back.family, back.desired, back.like)
        else:
            firewall.replace(back.family, back.desired)


def _reverse(change: TableChange, before: Table | None) -> TableChange:
    """The change that undoes another."""
    own = own_part(before, change.unsigned) if before else None
    return TableChange(change.family, change.name, own, change.desired, before if own else None)


def _is_back(firewall: Firewall, back: TableChange) -> bool:
    """Whether a table is already in its previous state; an unreadable table counts as changed."""
    try:
        now = firewall.read(back.family).table(back.name)
    except (InitError, OSError):
        return False
    if back.like is not None:
        return _same(back.like, now)
    return now is None or own_part(now, back.unsigned) is None


def _tables(write: Write) -> str:
    names = ", ".join(f"{change.family} {change.name}" for change in write.changes)
    return " ".join(word for word in (write.name, names) if word)


def _commands(entries: tuple[RoutingEntry, ...], verb: str) -> str:
    return "; ".join(command(entry, "del" if verb == "del" else "add") for entry in entries)
