"""The lock that everyone who edits the legacy tables is to hold: flock(2) on /run/xtables.lock, as iptables does.

Where there can be no such file (a read-only root, a directory that is not ours), or where pods must not wait
for each other, the network namespace itself is locked: a file of its own, shared by all who work in it.
"""

from __future__ import annotations

import errno
import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond
import time

from istio_init.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

DEFAULT_PATH = "/run/xtables.lock"
NAMESPACE_PATH = "/proc/thread-self/ns/net"

_PAUSE = 0.02  # seconds between two tries

# The file is not to be had, and nobody could have it: a read-only file system, no such directory, not ours.
_UNAVAILABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT})


class XtablesLock:
    """Holds the lock from `with` to its end, or to the end of the process, however it comes.

    `path` is XTABLES_LOCKFILE's value, empty for the default. `namespace` asks for the calling thread's network
    namespace instead. `waiting` is told once, in words, where somebody else holds it. Locked after `wait` seconds.
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
        self._path = NAMESPACE_PATH if namespace else path or DEFAULT_PATH
        self._waiting = waiting
        self._held: list[int] = []

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._wait
        try:
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
        while self._held:
            os.close(self._held.pop())

    def _opened(self) -> Iterator[tuple[str, int]]:
        """What is to be locked, in this order, each opened when those before it are held."""
        if self._path != NAMESPACE_PATH:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in _UNAVAILABLE:
                    raise KernelError(
                        f"{self._path}: can't open the xtables lock: {error.strerror}: "
                        "let XTABLES_LOCKFILE name a file that can be made",
                        error.errno or 0,
                    ) from error
            else:
                yield self._path, descriptor
                return
            # One that is there to be read is what iptables would lock.
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass
            else:
                yield self._path, descriptor
        yield NAMESPACE_PATH, os.open(NAMESPACE_PATH, os.O_RDONLY | os.O_CLOEXEC)

    def _take(self, path: str, descriptor: int, deadline: float) -> None:
        """Lock an open file; Locked where somebody else still holds it at the deadline (of time.monotonic)."""
        told = False
        while not _locked(descriptor):
            from istio_init.kernel.host.lock_holders import holders

            if time.monotonic() >= deadline:
                from istio_init.errors_rare import Locked

                raise Locked(
                    f"{path}: held by {holders(descriptor)} for more than {self._wait:g} s: "
                    "wait longer with --wait, or end what holds it"
                )
            if self._waiting is not None and not told:
                self._waiting(f"waiting up to {self._wait:g} s for {path}, held by {holders(descriptor)}")
                told = True
            time.sleep(_PAUSE)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
