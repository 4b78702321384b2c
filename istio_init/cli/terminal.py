"""The terminal: colours, and a pager for answers that are longer than the screen."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from istio_init.errors_rare import OptionError
from istio_init.kernel.host import pager

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

COLORS = ("auto", "always", "never")
# The first that is set counts; empty or cat means no pager. https://no-color.org
PAGER_VARIABLES = ("ISTIO_INIT_PAGER", "PAGER")
PAGER = "less"


class _Settings:
    """What --color and --no-pager say for this command line."""

    color = "auto"
    pager = True


def reset() -> None:
    """Forget the flags of an earlier command line in this process."""
    _Settings.color, _Settings.pager = "auto", True


def set_color(value: str | None) -> None:
    """Take the value of --color, as Typer calls it; None leaves it as it is."""
    if value is None:
        return
    if value not in COLORS:
        raise OptionError("--color", value, "unknown: use auto, always or never")
    _Settings.color = value


def set_no_pager(value: bool) -> None:  # noqa: FBT001 (Typer calls it with the switch)
    """Take --no-pager, as Typer calls it; without the flag nothing changes."""
    if value:
        _Settings.pager = False


def is_rich() -> bool:
    """Whether standard output is to be styled: a terminal, or --color always."""
    return sys.stdout.isatty() or _Settings.color == "always"


def has_colors(*, stderr: bool = False) -> bool:
    """Whether a stream gets colours: --color, else a terminal where NO_COLOR is not set."""
    if _Settings.color != "auto":
        return _Settings.color == "always"
    stream = sys.stderr if stderr else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A rich console for a stream, with colours or without."""
    from rich.console import Console

    colors = has_colors(stderr=stderr)
    if not colors:
        return Console(stderr=stderr, width=width, color_system=None, highlight=False)
    forced = True if _Settings.color == "always" else None
    return Console(stderr=stderr, width=width, force_terminal=forced, no_color=False, highlight=False)


def show(draw: Callable[[Console], None], *, width: int | None = None) -> None:
    """Print what is drawn on a console of standard output, by a pager if it is longer than the screen."""
    target = console(width=width)
    with target.capture() as captured:
        draw(target)
    write(captured.get())


def write(text: str) -> None:
    """Print a text, by a pager if it is longer than the screen."""
    command = _pager() if text.count("\n") >= shutil.get_terminal_size().lines else []
    sys.stdout.flush()
    if not command or not pager.show(command, text):
        sys.stdout.write(text)


def _pager() -> list[str]:
    """The pager's words; none where a person does not look at standard output, or does not want one."""
    if not (_Settings.pager and sys.stdout.isatty() and sys.stdin and sys.stdin.isatty()):
        return []
    chosen = next((os.environ[name] for name in PAGER_VARIABLES if name in os.environ), PAGER)
    try:
        words = shlex.split(chosen)
    except ValueError:
        return []
    return words if words and words != ["cat"] and pager.exists(words[0]) else []
