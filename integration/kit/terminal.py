"""A terminal for programs that do more where somebody watches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pexpect

from integration.kit.program import environment

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

# Seconds without what is expected, after which a test fails.
PATIENCE = 60


@contextlib.contextmanager
def at_a_terminal(namespace: Namespace, *command: str, columns: int = 160) -> Iterator[pexpect.spawn[str]]:
    """The command inside of the namespace, on a terminal of so many columns with colours, to be watched and typed at.

    No shell is between: which one would be the user's choice (SHELL), and not each of them becomes the program.
    """
    words = ["netns", "exec", namespace.name, *command]
    environ = environment(namespace, {"TERM": "xterm", "COLUMNS": str(columns), "ISTIO_INIT_PAGER": ""})
    # A typed Ctrl-C is echoed wherever the output is, be it within a character.
    child = pexpect.spawn(
        "/usr/sbin/ip",
        words,
        env=environ,
        dimensions=(60, columns),
        encoding="utf-8",
        codec_errors="replace",
        timeout=PATIENCE,
    )
    try:
        yield child
    finally:
        child.close(force=True)


def ended(child: pexpect.spawn[str]) -> tuple[int | None, str]:
    """Its exit code, None where a signal ended it, and what it wrote from here to its end."""
    child.expect(pexpect.EOF)
    rest = child.before
    child.close()
    assert isinstance(rest, str)
    return child.exitstatus, rest
