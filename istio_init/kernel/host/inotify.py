"""Waiting until something changes in a few directories, or until the program is asked to end."""

from __future__ import annotations

import errno
import os
import select
import signal
from typing import TYPE_CHECKING

from istio_init.errors import KernelError, shown
from istio_init.kernel.host.libc import function, get_errno, library
from istio_init.kernel.host.process import asked_to_end

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any, Self

# <linux/inotify.h>
IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR = 0x400, 0x800, 0x1000000
CHANGES = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Watch:
    """Watches directories by inotify(7) for the length of a `with`, in which signals that end a program only wake it.

    inotify does not see everything (a directory that was replaced, another machine's writes), and there may be none
    left of it; the waiting process looks again after a while, too, and then the watches are set anew.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = directories
        # A signal may have come while the program started.
        self._asked = asked_to_end()
        self._before: dict[int, Any] = {}
        self._inotify = -1

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in ENDING:
            self._before[number] = signal.signal(number, self._end)
        self.renew()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for descriptor in (self._reading, self._writing, self._inotify):
            if descriptor >= 0:
                os.close(descriptor)

    def _end(self, *_: object) -> None:
        self._asked = True
        os.write(self._writing, b"\0")

    def renew(self) -> None:
        """Watch what now is at the directories' paths; one that is missing is seen when it is looked for."""
        if self._inotify >= 0:
            os.close(self._inotify)
        libc = library(None)
        self._inotify = function(libc, "inotify_init1")(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            if get_errno() not in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS}:
                raise KernelError(f"inotify: {os.strerror(get_errno())}", get_errno())
            return
        add = function(libc, "inotify_add_watch")
        for directory in self._directories:
            if add(self._inotify, os.fsencode(directory), CHANGES | IN_ONLYDIR) < 0:
                number = get_errno()
                if number not in {errno.ENOENT, errno.ENOTDIR, errno.ENOSPC}:
                    raise KernelError(f"{shown(directory)}: can't be watched: {os.strerror(number)}", number)

    @property
    def asked_to_end(self) -> bool:
        """Whether the program was asked to end."""
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Wait for a change, for that long at the longest; False once the program was asked to end."""
        if self._asked:
            return False
        waiting = [self._reading] if self._inotify < 0 else [self._reading, self._inotify]
        ready, _, _ = select.select(waiting, [], [], seconds)
        if self._inotify in ready:
            while _drained(self._inotify):
                pass
        else:
            self.renew()
        return not self._asked


def _drained(descriptor: int) -> bool:
    """Read events away; which they were does not matter. Whether there may be more."""
    try:
        return bool(os.read(descriptor, 1 << 16))
    except BlockingIOError:
        return False
