"""Errors, with messages for the person who has to fix the cause.

Each kind knows its exit code (Istio's: 1 for any error, 126 for a failed validation, 255 for a command
line that can't be parsed). An error's text is one line: which flag or object, which value, what is
wrong, what to do. Errors that a run does not need to import before it fails are in errors_rare.py.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Never


class InitError(Exception):
    """Anything that ends a run; the message is shown to the user as it is."""

    exit_code = 1


class KernelError(InitError):
    """The kernel refused a call; `errno` is its error number, 0 if it gave none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Interrupted(InitError):
    """A signal ended the run; its changes are rolled back."""


def shown(value: str, limit: int = 80) -> str:
    """A user's value for a line of output: quoted, escaped, and cut to `limit` characters."""
    text = value if len(value) <= limit else value[: limit - 3] + "..."
    return repr(text)


def limit_remedy(number: int) -> str:
    """The remedy for an error number that means an exhausted limit; empty for any other."""
    match number:
        case 23 | 24:  # ENFILE, EMFILE: <asm-generic/errno-base.h>
            return "raise the limit of open files (ulimit -n)"
        case 12:  # ENOMEM
            return "raise the limit of memory"
        case _:
            return ""


def out_of_resources(error: BaseException) -> str:
    """The message for Python's own failure to import a module or to allocate memory."""
    why = str(error) or type(error).__name__
    return f"can't go on: {why}; raise the limits of memory and of open files (ulimit -n), or make /usr readable"


def printable(text: str) -> str:
    """The text with control characters and line breaks escaped.

    Use it for every text from the kernel, pods, files or other programs before it is written to a terminal, a log or a
    termination message. JSON output keeps the exact text.
    """
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else repr(each)[1:-1] for each in text])


def assert_never(kind: Never) -> Never:
    """Marks the end of a match over all kinds; `typing.assert_never` without the cost of importing typing."""
    raise AssertionError(f"unhandled kind {kind!r}")
