"""Entering another network namespace, and returning from it."""

from __future__ import annotations

import errno
import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init import errors

# Errors of a path at which there is nothing.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000  # <linux/sched.h>
GET_USERNS = 0xB701  # <linux/nsfs.h>: NS_GET_USERNS
SET_DUMPABLE = 4  # <linux/prctl.h>: PR_SET_DUMPABLE

# The calling thread's namespaces. /proc/self has those of the main thread, which may be others.
OWN = "/proc/thread-self/ns/net"
OWN_USER = "/proc/thread-self/ns/user"


# Open descriptors of pinned namespaces by path; -1 where there was none.
_pinned: dict[str, int] = {}


class Pinned:
    """Within its `with`, a path means the network namespace that it named at the beginning, or none if it named none.

    A process that may change what is at the path could otherwise have one namespace checked and another one written.
    KernelError where the path can't be opened for another reason than that nothing is there.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Self:
        if self.path:
            try:
                _pinned[self.path] = _open(self.path)
            except errors.KernelError as error:
                if error.errno not in _GONE:
                    raise
                _pinned[self.path] = -1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        descriptor = _pinned.pop(self.path, -1)
        if descriptor >= 0:
            os.close(descriptor)


class Namespace:
    """The network namespace at a path, within a `with`; an empty path is the caller's own.

    Only the calling thread moves (setns(2)), and it returns however the `with` ends. KernelError where the path names
    no network namespace, or where entering it or returning is refused.

    `as_owner` is for a process that is about to end: it also joins the user namespace that owns the network namespace,
    if that is another one (of a pod with hostUsers: false), and stays there. The kernel accepts rules with -m owner
    only from within (xt_owner.c, owner_check), and lets no process leave a user namespace. The process must have no
    other thread.
    """

    def __init__(self, path: str, *, as_owner: bool = False) -> None:
        self.path, self.as_owner = path, as_owner
        self._home = -1
        self._stays = False

    def __enter__(self) -> Self:
        if not self.path:
            return self
        target = _open(self.path)
        try:
            self._home = _open(OWN)
            try:
                self._enter(target)
            except errors.KernelError:
                os.close(self._home)
                raise
        finally:
            os.close(target)
        return self

    def _enter(self, target: int) -> None:
        try:
            setns(target, CLONE_NEWNET)
        except OSError as error:
            raise _error(self.path, error) from error
        if not self.as_owner:
            return
        try:
            self._stays = join_owner(target)
        except OSError as error:
            setns(self._home, CLONE_NEWNET)
            text = f"network namespace {errors.shown(self.path)}: its user namespace can't be joined: {error.strerror}"
            remedy = "that needs SYS_ADMIN there, and a process that has no other thread"
            raise errors.KernelError(f"{text}: {remedy}", error.errno or 0) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.path:
            return
        try:
            if not self._stays:
                setns(self._home, CLONE_NEWNET)
        except OSError as refused:
            text = f"network namespace {errors.shown(self.path)}: can't return from it: {refused.strerror}"
            raise errors.KernelError(text, refused.errno or 0) from refused
        finally:
            os.close(self._home)


def inode(path: str = OWN) -> int:
    """The inode number of the namespace at a path, 0 where there is nothing. KernelError where it can't be read."""
    try:
        if path in _pinned:
            return os.fstat(_pinned[path]).st_ino if _pinned[path] >= 0 else 0
        return os.stat(path).st_ino
    except ValueError:
        return 0  # a NUL byte, which no path has
    except OSError as error:
        if error.errno in _GONE:
            return 0
        raise _error(path, error) from error


def _open(path: str) -> int:
    try:
        if path in _pinned:
            if _pinned[path] < 0:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))  # noqa: TRY301 (one way out)
            return os.dup(_pinned[path])
        # A terminal or a pipe at that path must neither block nor do anything else.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _error(path, error) from error
    except ValueError as error:  # a NUL byte
        raise errors.KernelError(f"network namespace {errors.shown(path)}: {error}", errno.EINVAL) from error


def _error(path: str, error: OSError) -> errors.KernelError:
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    what = f"network namespace {errors.shown(path)}: {error.strerror} ({name}); {_remedy(number)}"
    return errors.KernelError(what, number)


def _remedy(number: int) -> str:
    """What the reader can do about it."""
    match number:
        case errno.ENOENT | errno.ENOTDIR:
            return "name one that exists, such as /var/run/netns/NAME or /proc/PID/ns/net"
        case errno.EINVAL | errno.EISDIR | errno.ENXIO:
            return "it is not a network namespace; name one such as /var/run/netns/NAME or /proc/PID/ns/net"
        case errno.EPERM:
            return "entering it needs the capability SYS_ADMIN, here and in the user namespace that owns it"
        case errno.EACCES:
            return "reading another process' namespaces needs the capability SYS_PTRACE, or its user id"
        case _:
            return "name one that can be opened, such as /var/run/netns/NAME or /proc/PID/ns/net"


def join_owner(target: int) -> bool:
    """Join the user namespace of an open network namespace, if it is another one. OSError where it is refused."""
    try:
        owner = fcntl.ioctl(target, GET_USERNS)
    except OSError:
        return False  # not a descendant, or an old kernel: the kernel will refuse what needs it
    try:
        if os.fstat(owner).st_ino == os.stat(OWN_USER).st_ino:
            return False
        # In there the pod's root has every capability: it must not trace a process that has files of the node open.
        from istio_init.kernel.host.libc import function, library

        function(library(None), "prctl")(SET_DUMPABLE, 0, 0, 0, 0)
        setns(owner, CLONE_NEWUSER)
    finally:
        os.close(owner)
    return True


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into an open namespace; OSError where that is refused or it is of another kind."""
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(descriptor, kind)
        return
    from istio_init.kernel.host.libc import function, get_errno, library

    if function(library(None), "setns")(descriptor, kind):
        number = get_errno()
        raise OSError(number, os.strerror(number))
