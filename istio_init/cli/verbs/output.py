"""Output of the verbs: coloured on a terminal, plain elsewhere."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from istio_init.cli import terminal
from istio_init.errors import printable
from istio_init.errors_rare import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console

    from istio_init.simulate.report import TextLine

# The exit codes of check by inspect.state.Conformance.
CHECK_EXIT_CODES = {"in place": 0, "drifted": 3, "absent": 4}
# Seconds that a person waits without asking what is going on.
PATIENCE = 1.0
STYLES = {
    "title": "bold",
    "hook": "cyan",
    "hit": "green",
    "miss": "dim",
    "purpose": "italic",
    "routing": "blue",
    "fate": "bold green",
    "trouble": "bold red",
}


def print_json(schema: str, value: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print an answer for programs."""
    sys.stdout.write(json_text(schema, value, indent=indent))


def json_text(schema: str, value: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """An answer for programs; it begins with the name and version of its schema (istio_init/schemas)."""
    return json.dumps({"schema": f"{schema}.v1", **value}, indent=indent) + "\n"


def show(lines: Iterable[TextLine]) -> None:
    """Print lines, indented by their depth."""
    if not terminal.is_rich():
        sys.stdout.write("".join(f"{'  ' * line.depth}{printable(line.text)}".rstrip() + "\n" for line in lines))
        return
    from rich.padding import Padding
    from rich.text import Text

    # Elsewhere than on a terminal, a line is as long as it is.
    folded = sys.stdout.isatty()

    def draw(console: Console) -> None:
        for line in lines:
            text = Text(printable(line.text), style=STYLES[line.style])
            if folded:
                console.print(Padding(text, (0, 0, 0, 2 * line.depth)))
            else:
                console.print(Text("  " * line.depth) + text, soft_wrap=True)

    terminal.show(draw)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a spinner with the elapsed time on a terminal if the body takes longer than a second.

    The body must not join another user namespace, which a process with a second thread can't.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=terminal.console(stderr=True), transient=True)
    progress.add_task(what, total=None)
    timer = threading.Timer(PATIENCE, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


def choice(flag: str, text: str, choices: tuple[str, ...]) -> str:
    """The text, if it is one of the choices; OptionError otherwise."""
    if text not in choices:
        raise OptionError(flag, text, f"unknown: use {', '.join(choices[:-1])} or {choices[-1]}")
    return text
