"""The terminal of `show --watch`: keys are read as they are typed, and the page is drawn in place of the one before.

No second thread: a look may join another user namespace, which a process with two threads can't.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_init.cli import terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.inspect.snapshot import Snapshot

# Seconds after which the page is drawn anew even if nothing happens: the terminal may have another size.
LONGEST_WAIT = 1.0
SEQUENCES = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"\x1b[5~": "page up",
    b"\x1b[6~": "page down", b"\x1b[H": "home", b"\x1b[F": "end", b"\x1b[1~": "home", b"\x1b[4~": "end",
}  # fmt: skip
NAMES = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape"}


def is_possible() -> bool:
    """Whether standard input and output are a terminal."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def watch(look: Callable[[], Snapshot], seconds: float) -> None:
    """Show a page of what `look` sees, every so many seconds, until a key ends it. KernelError where a look fails."""
    from rich.live import Live

    from istio_init.cli.verbs.watch_page import LivePage

    page, console = LivePage(), terminal.console()
    page.update(look(), time.monotonic())
    due = time.monotonic() + seconds
    with _keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            if time.monotonic() >= due and not page.paused:
                page.update(look(), time.monotonic())
                due = time.monotonic() + seconds
            live.update(page.render(*console.size), refresh=True)
            wait = LONGEST_WAIT if page.paused else min(max(due - time.monotonic(), 0), LONGEST_WAIT)
            if not select.select([keyboard], [], [], wait)[0]:
                continue
            data = os.read(keyboard, 1024)
            if not data or not all(page.press(key) for key in keys(data)):
                return


@contextmanager
def _keyboard() -> Iterator[int]:
    """Standard input, which hands on each key at once and echoes none; as it was, afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def keys(data: bytes) -> Iterator[str]:
    """The keys that a terminal's bytes mean; sequences that are not known are left out."""
    while data:
        sequence = next((each for each in SEQUENCES if data.startswith(each)), b"")
        if sequence:
            yield SEQUENCES[sequence]
            data = data[len(sequence) :]
        elif data.startswith((b"\x1b[", b"\x1bO")):
            end = next((at for at, byte in enumerate(data[2:], 3) if 0x40 <= byte <= 0x7E), len(data))
            data = data[end:]
        else:
            length = next((n for n in range(1, 5) if _is_text(data[:n])), 1)
            text = data[:length].decode(errors="replace")
            yield NAMES.get(text, text)
            data = data[length:]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
