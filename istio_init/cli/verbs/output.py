"""Output of the verbs: coloured on a terminal, plain elsewhere."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from istio_init.errors import printable
from istio_init.errors_rare import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_init.simulate.report import TextLine

# The exit codes of check by inspect.state.Conformance.
CHECK_EXIT_CODES = {"in place": 0, "drifted": 3, "absent": 4}
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
    if not sys.stdout.isatty():
        sys.stdout.write("".join(f"{'  ' * line.depth}{printable(line.text)}".rstrip() + "\n" for line in lines))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    for line in lines:
        console.print(Padding(Text(printable(line.text), style=STYLES[line.style]), (0, 0, 0, 2 * line.depth)))


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a spinner with the elapsed time on a terminal while the body runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def choice(flag: str, text: str, choices: tuple[str, ...]) -> str:
    """The text, if it is one of the choices; OptionError otherwise."""
    if text not in choices:
        raise OptionError(flag, text, f"unknown: use {', '.join(choices[:-1])} or {choices[-1]}")
    return text
