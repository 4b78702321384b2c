"""Working inside another network namespace, and coming back."""

from __future__ import annotations

import errno
import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000  # <linux/sched.h>
GET_USERNS = 0xB701  # <linux/nsfs.h>: NS_GET_USERNS
SET_DUMPABLE = 4  # <linux/prctl.h>: PR_SET_DUMPABLE

# The calling thread's own. /proc/self is the main thread's, which another thread need not share.
OWN = "/proc/thread-self/ns/net"
OWN_USER = "/proc/thread-self/ns/user"


class Namespace:
    """The network namespace at a path, for the length of a `with`; an empty path is the caller's own.

    Only the calling thread moves, as setns(2) has it, and it comes back however the `with` ends. KernelError
    where the path names no network namespace, or where entering it or coming back is refused.

    `as_owner` is for a process that is about to end: it joins the user namespace that the network namespace belongs
    to as well, if that is another (a pod's with hostUsers: false), and then stays. The kernel takes a rule with
    -m owner from nobody else (xt_owner.c, owner_check), and lets nobody out of a user namespace. It may have no
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
            self._stays = _join_owner(target)
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
            text = f"the way back from network namespace {errors.shown(self.path)} is barred: {refused.strerror}"
            raise errors.KernelError(text, refused.errno or 0) from refused
        finally:
            os.close(self._home)


def inode(path: str = OWN) -> int:
    """The number by which the kernel knows the namespace at a path, 0 where there is none to be seen."""
    try:
        return os.stat(path).st_ino
    except (OSError, ValueError):
        return 0


def _open(path: str) -> int:
    try:
        # Neither a terminal nor a pipe at that path may make the run wait or do anything else.
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
            return "name one that is there, such as /var/run/netns/NAME or /proc/PID/ns/net"
        case errno.EINVAL | errno.EISDIR | errno.ENXIO:
            return "this is no network namespace; name one such as /var/run/netns/NAME or /proc/PID/ns/net"
        case errno.EPERM:
            return "entering it needs the capability SYS_ADMIN, here and in the user namespace that owns it"
        case errno.EACCES:
            return "looking at another process' namespaces needs the capability SYS_PTRACE, or its user's id"
        case _:
            return "name one that can be opened, such as /var/run/netns/NAME or /proc/PID/ns/net"


def _join_owner(target: int) -> bool:
    """Join the user namespace of an open network namespace; whether there was need to. OSError where it is refused."""
    try:
        owner = fcntl.ioctl(target, GET_USERNS)
    except OSError:
        return False  # not below ours, or an old kernel: what is refused there is said where it is refused
    try:
        if os.fstat(owner).st_ino == os.stat(OWN_USER).st_ino:
            return False
        # There the pod's root has every capability: let him not trace a process that has the node's files open.
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
