"""`istio-init show`: the rules of a namespace with counters and purposes."""

from __future__ import annotations

import shutil
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli import terminal
from istio_init.cli.verbs import ebpf, live_options
from istio_init.cli.verbs import watch as live_page
from istio_init.cli.verbs.acting import RecordedLog
from istio_init.cli.verbs.output import choice, print_json
from istio_init.cli.verbs.show_render import as_json, least_width, lines, plain, tables
from istio_init.cli.verbs.subject import Container, FromSave, Live, Pid, Where, placed, require_no_place, saved_rules
from istio_init.errors_rare import OptionError
from istio_init.inspect.snapshot import Snapshot, of_dump, take
from istio_init.log import Log
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Seconds of a --watch without a value.
INTERVAL = "2"
SHORTEST, LONGEST = 0.1, 86400.0


def show(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    _live: Live = False,
    pid: Pid = None,
    container: Container = None,
    from_save: FromSave = "",
    watch: Annotated[str, typer.Option(metavar="[SECONDS]", help="Refresh until Ctrl-C. Unset: every 2 seconds.")] = "",
    times: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="With --watch: stop after this many refreshes.")
    ] = None,
    output: Annotated[
        str,
        typer.Option(metavar="table|text|json", help="Unset: a table on a terminal, text elsewhere."),
    ] = "",
) -> int:
    """Show the current rules with their counters, what each is for, and whether the plan is in place."""
    form = choice("--output", output or ("table" if sys.stdout.isatty() else "text"), ("table", "text", "json"))
    if times is not None and not watch:
        raise OptionError("--count", str(times), "only used with --watch; add --watch")
    chosen = placed(options, Where(True, pid, container))
    log = Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    if from_save:
        require_no_place(chosen)
        if watch:
            raise OptionError("--watch", watch, "a dump does not change: leave it out with --from-save")
        rulesets = saved_rules(from_save)
        dump = of_dump(live_options.resolved(chosen, log, rulesets), rulesets, log)
        _print(dump, form, watching=False)
        return 0
    if chosen.capture_backend == "ebpf":
        return ebpf.show(chosen, log, form)

    chosen = live_options.resolved(chosen, log)

    def look() -> Snapshot:
        return take(chosen, log)

    if not watch:
        _print(look(), form, watching=False)
        return 0
    seconds = interval(watch)
    snapshots = islice(_snapshots(look, seconds), times)
    try:
        if form == "table" and times is None and live_page.is_possible():
            # Log lines would be written across the page, which says what they say.
            live_page.watch(lambda: take(chosen, RecordedLog("none")), seconds)
            return 0
        if form == "table" and sys.stdout.isatty():
            _refresh(snapshots)
        else:
            for snapshot in snapshots:
                _print(snapshot, form, watching=True)
    except KeyboardInterrupt:
        pass
    return 0


def _snapshots(look: Callable[[], Snapshot], seconds: float) -> Iterator[Snapshot]:
    """One snapshot at once, then one after each interval."""
    yield look()
    while True:
        time.sleep(seconds)
        yield look()


def _print(snapshot: Snapshot, form: str, *, watching: bool) -> None:
    """Print a snapshot; while watching, a JSON document is one line, and a text ends in an empty line."""
    if form == "json":
        print_json("show", as_json(snapshot), indent=None if watching else 2)
    elif form == "text" or _too_narrow(snapshot):
        text = "".join(f"{line}\n" for line in plain(snapshot)) + "\n" * watching
        (sys.stdout.write if watching else terminal.write)(text)
    else:
        # Output to a file or a pipe has no width limit.
        width = max(_columns(), least_width(snapshot))
        view = tables(snapshot)
        if watching:
            terminal.console(width=width).print(view)
        else:
            terminal.show(lambda console: console.print(view), width=width)
    sys.stdout.flush()


def _too_narrow(snapshot: Snapshot) -> bool:
    """Whether the terminal is too narrow for all columns of a table."""
    return sys.stdout.isatty() and _columns() < least_width(snapshot)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _refresh(snapshots: Iterator[Snapshot]) -> None:
    """Show each snapshot in place of the previous one."""
    from rich.live import Live

    with Live(console=terminal.console(), auto_refresh=False) as live:
        for snapshot in snapshots:
            view = lines(snapshot, brief=True) if _too_narrow(snapshot) else tables(snapshot, brief=True)
            live.update(view, refresh=True)


def interval(text: str) -> float:
    """The seconds of --watch; OptionError for anything else."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST <= seconds <= LONGEST:
        raise OptionError("--watch", text, f"not a number of seconds: use {SHORTEST:g} to {LONGEST:g}")
    return seconds


def spelled_out(argv: Sequence[str]) -> list[str]:
    """The command line with the default seconds after a --watch that has none, since Typer requires a value."""
    tokens = list(argv)
    for at in reversed(range(len(tokens))):
        if tokens[:1] == ["show"] and tokens[at] == "--watch":
            following = tokens[at + 1 : at + 2]
            if not following or following[0].startswith("-"):
                tokens.insert(at + 1, INTERVAL)
    return tokens
