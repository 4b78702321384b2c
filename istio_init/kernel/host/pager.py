"""A pager: a program that shows a long text on a terminal, page by page."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

# What less needs for colours, to end where all fits, and to leave the text on the screen; as git sets it.
ENVIRONMENT = {"LESS": "FRX", "LV": "-c"}


def exists(program: str) -> bool:
    """Whether a program is in PATH."""
    return shutil.which(program) is not None


def show(command: list[str], text: str) -> bool:
    """Show a text with the pager's command, and return when it ends; False if it can't be started.

    Ctrl-C belongs to the pager meanwhile. Only in the main thread.
    """
    environment = {**ENVIRONMENT, **os.environ}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, restore_signals=True) as pager:  # noqa: S603 (the user's own)
            try:
                pager.communicate(text.encode(errors="backslashreplace"))
            except BrokenPipeError:
                pass
    except OSError:
        return False
    finally:
        signal.signal(signal.SIGINT, before)
    return True
