"""One run of the program: apply, clean up, dry run or validate, depending on the options."""

from __future__ import annotations

import time

from istio_init.errors import InitError, Interrupted, out_of_resources
from istio_init.log import Log
from istio_init.runner import access, backends
from istio_init.runner.defaults import resolve_defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan
else:
    # The C half of signal; the module around it imports enum.
    import _signal

# The outcome of a run that failed before it wrote anything.
UNCHANGED = "nothing was changed"


def run(options: Options, environ: Mapping[str, str], warnings: Sequence[str] = (), log: Log | None = None) -> int:
    """Run with these options; returns the exit code. Warnings and errors are logged, one line each."""
    begin = time.monotonic()
    log = log or Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    for warning in warnings:
        log.warn(warning)
    try:
        with Interrupts() as interrupts:
            perform(options, environ, log, begin, interrupts)
    except InitError as error:
        log.error(_error_text(str(error), error))  # noqa: TRY400 (a user's line, no traceback)
        return error.exit_code
    except (ImportError, MemoryError, OSError, SystemError) as error:  # the last: importlib, without memory
        log.error(_error_text(out_of_resources(error), error))  # noqa: TRY400 (the same)
        return 1
    return 0


def _error_text(text: str, error: BaseException) -> str:
    """The error with its notes, and the namespace's state unless the text has it already."""
    notes = getattr(error, "__notes__", [])
    outcome = getattr(error, "outcome", "")
    if outcome == UNCHANGED and isinstance(error, Interrupted):
        return "; ".join([outcome, text, *notes])
    stated = outcome in notes or (outcome == UNCHANGED and "; nothing was written" in text)
    return "; ".join([text, *notes, *([outcome] if outcome and not stated else [])])


class Interrupts:
    """A context manager in which SIGTERM, SIGINT and SIGHUP raise Interrupted, unless they were ignored before."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            if _signal.getsignal(number) != _signal.SIG_IGN:
                self._before[number] = _signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore further signals: the run is complete."""
        for number in self._before:
            _signal.signal(number, _signal.SIG_IGN)

    def restore_handlers(self) -> None:
        """Let signals interrupt again."""
        for number in self._before:
            _signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _frame: object) -> None:
        # The first signal ends the run; later ones must not interrupt the rollback.
        self.ignore()
        raise Interrupted(f"ended by signal {number}")


def perform(options: Options, environ: Mapping[str, str], log: Log, begin: float, interrupts: Interrupts) -> None:
    """Run with these options; `begin` is the start time (time.monotonic). InitError if it fails.

    The process does not leave a network namespace that belongs to another user namespace, since it ends soon.
    """
    if options.capture_backend == "ebpf":
        from istio_init.runner import socket_capture

        socket_capture.perform(options, environ, log, begin)
        return
    if options.dry_run:
        from istio_init.runner.dry_run import preview

        preview(options, environ, log)
        return
    if options.network_namespace:
        with access.namespace(options, as_owner=True):
            _act(options, environ, log, begin, interrupts)
    else:
        _act(options, environ, log, begin, interrupts)


def _act(options: Options, environ: Mapping[str, str], log: Log, begin: float, interrupts: Interrupts) -> None:
    outcome = UNCHANGED
    try:
        if not options.skip_rule_apply or options.run_validation:
            options = resolve_defaults(options, log)
        if not options.skip_rule_apply:
            summary = _change(options, environ, log, interrupts)
            outcome = "the namespace has the plan"
            log.info(f"{summary} in {(time.monotonic() - begin) * 1000:.1f} ms")
        if options.run_validation and not options.cleanup_only:
            interrupts.restore_handlers()
            _validate(options, log)
    except BaseException as error:
        if not hasattr(error, "outcome"):  # roll_back may have set it
            error.outcome = outcome  # type: ignore[attr-defined] # (whatever kind of error ended the run)
        raise


def _plan(options: Options) -> Plan:
    from istio_init.planning.plan import build

    return build(options)


def _change(options: Options, environ: Mapping[str, str], log: Log, interrupts: Interrupts) -> str:
    """Apply or clean up, under the lock; returns a summary for the log."""
    from istio_init.runner import transaction

    access.require_descriptors()
    if not options.native_nftables:  # which does not use libiptc
        access.keep_freed_memory()
    plan = _plan(options)
    router = access.router()
    with access.lock(options, environ, log):
        present = backends.tables()
        firewall = backends.firewall(options, log, present)
        others = backends.others(options, firewall, present)
        if options.cleanup_only:
            from istio_init.runner import cleanup

            name, _ = backends.choose(options, present)
            changes = cleanup.clean(
                plan, firewall, router, log, on_commit=interrupts.ignore, others=others, chosen=name
            )
            return "cleaned up" if changes else "no Istio rules found; nothing to clean up"
        modes = {"reconcile": options.reconcile, "force": options.force_apply, "warn": True}
        changes = transaction.apply(plan, firewall, router, log, **modes, on_commit=interrupts.ignore, others=others)
        return transaction.summary(changes, plan.rulesets)


def _validate(options: Options, log: Log) -> None:
    from istio_init.runner.validation import validate

    validate(options, log)
