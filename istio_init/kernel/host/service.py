"""Settings of a process that runs for months: how many files it may open, and that its log never makes it wait."""

from __future__ import annotations

import os
import resource
import stat


def raise_open_files() -> int:
    """Raise the limit of open files as far as this process may; returns it.

    Container runtimes start processes with 1024, for the sake of programs that use select(2).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def never_wait_for_reader(descriptor: int) -> None:
    """Have writes to a pipe fail, and not wait, while its reader is stuck.

    Other processes that have the pipe open are unaffected. Other kinds of files stay as they are.
    """
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            another = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(another, descriptor)
            os.close(another)
    except OSError:
        pass
