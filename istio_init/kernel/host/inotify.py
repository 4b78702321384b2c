"""Waiting until something changes in a few directories, or until the program is asked to end."""

from __future__ import annotations

import errno
import os
import select
import signal
from typing import TYPE_CHECKING

from istio_init.errors import KernelError, shown
from istio_init.kernel.host.libc import function, get_errno, library
from istio_init.kernel.host.process import termination_requested

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any, Self

# <linux/inotify.h>
IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR = 0x400, 0x800, 0x1000000
CHANGES = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class DirectoryWatch:
    """Watches directories by inotify(7) for the length of a `with`; `descriptor` is readable after a change.

    inotify does not see everything (a directory that was replaced, another machine's writes), and there may be none
    left of it, where `descriptor` is -1. So the waiting process looks again after a while, and calls renew().
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = directories
        self.descriptor = -1

    def __enter__(self) -> Self:
        self.renew()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def renew(self) -> None:
        """Watch what now is at the directories' paths; one that is missing is seen when it is looked for."""
        self._close()
        libc = library(None)
        self.descriptor = function(libc, "inotify_init1")(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.descriptor < 0:
            if get_errno() not in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS}:
                raise KernelError(f"inotify: {os.strerror(get_errno())}", get_errno())
            return
        add = function(libc, "inotify_add_watch")
        for directory in self._directories:
            if add(self.descriptor, os.fsencode(directory), CHANGES | IN_ONLYDIR) < 0:
                number = get_errno()
                if number not in {errno.ENOENT, errno.ENOTDIR, errno.ENOSPC}:
                    raise KernelError(f"{shown(directory)}: can't be watched: {os.strerror(number)}", number)

    def drain(self) -> None:
        """Read all events away; which they were does not matter."""
        while self.descriptor >= 0:
            try:
                if not os.read(self.descriptor, 1 << 16):
                    return
            except BlockingIOError:
                return


class Watch(DirectoryWatch):
    """A DirectoryWatch that waits, in which signals that end a program only wake it."""

    def __init__(self, directories: Sequence[str]) -> None:
        super().__init__(directories)
        # A signal may have come while the program started.
        self._terminating = termination_requested()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in ENDING:
            self._before[number] = signal.signal(number, self._end)
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for descriptor in (self._reading, self._writing):
            os.close(descriptor)
        super().__exit__(kind, error, at)

    def _end(self, *_: object) -> None:
        self._terminating = True
        os.write(self._writing, b"\0")

    @property
    def termination_requested(self) -> bool:
        """Whether the program was asked to end."""
        return self._terminating

    def wait(self, seconds: float) -> bool:
        """Wait for a change, for that long at the longest; False once the program was asked to end."""
        if self._terminating:
            return False
        waiting = [self._reading] if self.descriptor < 0 else [self._reading, self.descriptor]
        ready, _, _ = select.select(waiting, [], [], seconds)
        if self.descriptor in ready:
            self.drain()
        else:
            self.renew()
        return not self._terminating

    def rest(self, seconds: float) -> None:
        """Wait that long, whatever changes, or until the program is asked to end."""
        if not self._terminating and seconds:
            select.select([self._reading], [], [], seconds)
