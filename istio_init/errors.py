"""What can go wrong, in the words of the person who has to mend it.

Each kind knows its exit code (Istio's: 1 for any error, 126 for a failed validation, 255 for a command
line that can't be parsed). An error's text is one line: which flag or object, which value, what is
wrong, what to do. Those that a run meets only where it ends by them are in errors_rare.py.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Never


class InitError(Exception):
    """Anything that ends a run; the message is shown to the user as it is."""

    exit_code = 1


class KernelError(InitError):
    """The kernel refused; `errno` is its number, 0 where there is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Interrupted(InitError):
    """A signal ended the run; what had been done is undone."""


def shown(value: str, limit: int = 80) -> str:
    """A user's value as it may appear in one line of output: quoted, escaped, and cut to `limit` characters."""
    text = value if len(value) <= limit else value[: limit - 3] + "..."
    return repr(text)


def limit_remedy(number: int) -> str:
    """What to do where an error number says that a limit is reached; empty for any other."""
    match number:
        case 23 | 24:  # ENFILE, EMFILE: <asm-generic/errno-base.h>
            return "raise the limit of open files (ulimit -n)"
        case 12:  # ENOMEM
            return "raise the limit of memory"
        case _:
            return ""


def out_of_resources(error: BaseException) -> str:
    """The message for a failure of Python itself to load or to allocate something."""
    why = str(error) or type(error).__name__
    return f"can't go on: {why}; raise the limits of memory and of open files (ulimit -n), or see that /usr can be read"


def printable(text: str) -> str:
    """The text with all characters escaped that a terminal acts on, or that begin another line.

    For every text from the kernel, pods, files or other programs on its way to a terminal, a log or a termination
    message. Programs get JSON, which is exact.
    """
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else repr(each)[1:-1] for each in text])


def assert_never(kind: Never) -> Never:
    """Marks the end of a match over all kinds; `typing.assert_never` without the cost of importing typing."""
    raise AssertionError(f"unhandled kind {kind!r}")
