"""The lock that every program takes that edits the legacy tables: flock(2) on /run/xtables.lock, as iptables does.

Pods must not wait for each other's CNI plugin, so that locks a file of its own for each network namespace, in a
directory of root's: any process of a pod could lock the namespace's own file, /proc/self/ns/net, and keep it. That one
is locked only without --cni-mode, where no lock file can be created (a read-only root).
"""

from __future__ import annotations

import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond
import time

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

DEFAULT_PATH = "/run/xtables.lock"
NAMESPACE_PATH = "/proc/thread-self/ns/net"
# Of the locks for one namespace each; for root only.
DIRECTORY = "/run/istio-init/locks"

_PAUSE = 0.02  # seconds between two attempts

# The file can't be created, and no program could create it: a read-only file system, no such directory, no permission.
_UNAVAILABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR})


class XtablesLock:
    """Holds the lock from `with` to its end, or to the end of the process, however it ends.

    `path` is XTABLES_LOCKFILE's value, empty for the default. `namespace` selects the lock of the calling thread's
    network namespace instead. `waiting` is called once, with a text, where another process holds it. Locked after
    `wait` seconds; KernelError where it can't be taken.
    """

    def __init__(
        self,
        wait: float,
        path: str = "",
        *,
        namespace: bool = False,
        waiting: Callable[[str], object] | None = None,
    ) -> None:
        self._wait = wait
        self._path = path or DEFAULT_PATH
        self._namespace = namespace
        self._waiting = waiting
        self._held: list[int] = []
        # The lock file of the namespace, while it is held: removed before it is released.
        self._temporary = ""

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._wait
        try:
            if self._namespace:
                self._take_temporary(deadline)
            else:
                for path, descriptor in self._opened():
                    self._held.append(descriptor)
                    self._take(path, descriptor, deadline)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._temporary:
            try:
                os.unlink(self._temporary)
            except OSError:
                pass  # an empty file remains in a directory that does not outlive the machine's start
            self._temporary = ""
        while self._held:
            os.close(self._held.pop())

    def _take_temporary(self, deadline: float) -> None:
        """Take the namespace's own lock file, created for that."""
        path = namespace_lock()
        while True:
            try:
                descriptor = _created(path)
            except OSError as error:
                remedy = "; make /run writable for root, or leave out --cni-mode to lock the whole node"
                raise _error(path, "can't open the lock", error, remedy) from error
            self._held.append(descriptor)
            self._take(path, descriptor, deadline)
            if _is_at(path, descriptor):
                self._temporary = path
                return
            # Its holder has removed it.
            os.close(self._held.pop())

    def _opened(self) -> Iterator[tuple[str, int]]:
        """The files to lock, in this order, each opened when those before it are held."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno not in _UNAVAILABLE:
                what = "can't open the xtables lock"
                raise _error(self._path, what, error, "; set XTABLES_LOCKFILE to a file that can be created") from error
        else:
            yield self._path, descriptor
            return
        # iptables would lock one that can be read.
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            pass
        else:
            yield self._path, descriptor
        try:
            descriptor = os.open(NAMESPACE_PATH, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _error(
                NAMESPACE_PATH, "can't open the lock", error, "; mount /proc, or make /run writable"
            ) from error
        yield NAMESPACE_PATH, descriptor

    def _take(self, path: str, descriptor: int, deadline: float) -> None:
        """Lock an open file; Locked where another process still holds it at the deadline (of time.monotonic)."""
        announced = False
        while not _locked(path, descriptor):
            from istio_init.kernel.host.lock_holders import holders

            if time.monotonic() >= deadline:
                from istio_init.errors_rare import Locked

                raise Locked(
                    f"{path}: held by {holders(descriptor)} for more than {self._wait:g} s: "
                    "wait longer with --wait, or end the process that holds it"
                )
            if self._waiting is not None and not announced:
                self._waiting(f"waiting up to {self._wait:g} s for {path}, held by {holders(descriptor)}")
                announced = True
            time.sleep(_PAUSE)


def namespace_lock() -> str:
    """The path of the lock file for the calling thread's network namespace. KernelError without /proc."""
    try:
        status = os.stat(NAMESPACE_PATH)
    except OSError as error:
        raise _error(NAMESPACE_PATH, "can't be read", error, "; mount /proc") from error
    return f"{DIRECTORY}/{status.st_dev:x}-{status.st_ino}"


def _created(path: str) -> int:
    """An open file at a path in DIRECTORY. OSError where the directory or the file can't be created."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        from istio_init.kernel.host.logfile import make_directory

        make_directory(DIRECTORY)
        return os.open(path, flags, 0o600)


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return there.st_ino == os.fstat(descriptor).st_ino


def _locked(path: str, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        what = "can't be locked"
        raise _error(path, what, error, "; a sandbox may forbid flock: allow it, or use another file system") from error
    return True


def _error(path: str, what: str, error: OSError, remedy: str = "") -> KernelError:
    return KernelError(f"{path}: {what}: {error.strerror}{remedy}", error.errno or 0)
