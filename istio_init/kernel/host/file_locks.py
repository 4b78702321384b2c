"""Locks on a directory and claims of a file, which end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from istio_init.errors import InitError
from istio_init.kernel.host.files import named

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class DirectoryLock:
    """One istio-init process at a time in a directory, within a `with`; InitError where it can't be opened."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InitError(f"{named(self.directory)}: can't be opened: {error.strerror}; is it the host's?") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            os.close(self._descriptor)
            raise InitError(
                f"{named(self.directory)}: can't be locked: {error.strerror}; see its file system"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)


class FileClaim:
    """A shared flock(2) on a file, for the length of a `with`: says that this process keeps it where it is."""

    def __init__(self, path: str) -> None:
        self._path, self._descriptor = path, -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()

    def renew(self) -> None:
        """Claim the file that is at the path now, which may have been replaced. InitError where it can't be claimed.

        Nothing is claimed where it has just been removed: the directory's change wakes the watcher.
        """
        self._release()
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        except FileNotFoundError:
            pass
        except OSError as error:
            why = f"{error.strerror}; see its file system"
            raise InitError(f"{named(self._path)}: can't be claimed: {why}") from error

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_claimed(path: str) -> bool:
    """Whether a running process has a FileClaim on the file at a path; a file that is not there is not claimed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # claiming is not possible here
    finally:
        os.close(descriptor)
    return False
