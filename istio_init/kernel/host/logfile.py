"""A file that many processes add lines to, and that can't outgrow its bound."""

from __future__ import annotations

import errno
import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond
import time

# The file before the current one.
OLDER = ".1"
# Seconds that a line waits for others' lines, but not for a stopped process that holds the lock.
PATIENCE = 1.0
PAUSE = 0.001
# Bytes that are searched for the end of the last whole line: more than any line of the plugin.
LAST = 64 << 10


def append(path: str, data: bytes, limit: int) -> None:
    """Add a line to a file that many processes write to; OSError where that can't be done, and nothing of it is there.

    The file takes at most `limit` bytes, or one line if that is longer. It is then moved to PATH.1, in the place of
    the one before.
    """
    end = time.monotonic() + PATIENCE
    while not _appended(path, data, limit, end):
        pass


def _appended(path: str, data: bytes, limit: int, end: float) -> bool:
    """Add a line to what is the file now; False where it is another one by then."""
    descriptor = _opened(path)
    try:
        _lock(descriptor, end)
        # Only the holder of the current file's lock writes to it and moves it.
        if not _is_current(path, descriptor):
            return False
        size = _whole(descriptor)
        if size and size + len(data) > limit:
            os.rename(path, path + OLDER)
            return False
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
    return True


def _opened(path: str) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        make_directory(path.rpartition("/")[0])
        return os.open(path, flags, 0o600)


def _lock(descriptor: int, end: float) -> None:
    """Have the file for oneself; OSError where that takes until after `end` (time.monotonic)."""
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(PAUSE)


def _is_current(path: str, descriptor: int) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        there, here = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _whole(descriptor: int) -> int:
    """The file's size, without the part of a line that a writer left who was killed at it: that is cut off."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    begin = max(0, size - LAST)
    size = begin + os.pread(descriptor, LAST, begin).rfind(b"\n") + 1
    os.ftruncate(descriptor, size)
    return size


def make_directory(path: str) -> None:
    """Make a directory for root alone, with those above it, where it is not there. OSError where that fails."""
    parts = path.rstrip("/").split("/")
    for end in range(2, len(parts) + 1):
        try:
            os.mkdir("/".join(parts[:end]), 0o700)
        except FileExistsError:
            pass
