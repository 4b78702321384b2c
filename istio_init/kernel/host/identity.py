"""Opens a socket, or connects one, with another user and group."""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import errno
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.kernel.host.libc import function, library

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# An invalid id: setfsuid and setfsgid return the current id for it, and change nothing.
INVALID_ID = 0xFFFFFFFF


def socket_as(uid: int, gid: int, family: int) -> socket.socket | None:
    """A non-blocking TCP socket that is this user's and group's for -m owner, or None where we may not make one.

    The owner match looks at the file system ids that the thread had when it made the socket (setfsuid(2)).
    They are the calling thread's alone; to take another's needs the capabilities SETUID and SETGID. OSError
    where there can't be a socket.
    """
    libc = library(None)
    set_uid, set_gid = (function(libc, name) for name in ("setfsuid", "setfsgid"))
    own_uid, own_gid = set_uid(INVALID_ID), set_gid(INVALID_ID)
    try:
        if _assumed(set_gid, gid) and _assumed(set_uid, uid):
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        return None
    finally:
        set_uid(own_uid)
        set_gid(own_gid)


def connect_as(uid: int, gid: int, client: socket.socket, address: tuple[str, int]) -> int:
    """Connect a socket as this user and group call connect(2), which programs at a cgroup look at; returns the errno.

    A child calls it, since the ids are all threads'. OSError where its ids cannot be changed.
    """
    child = os.fork()
    if child == 0:
        number = errno.EPERM
        try:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            number = client.connect_ex(address)
        finally:
            os._exit(number)  # noqa: SLF001 (that is its name)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _assumed(set_id: Callable[[int], int], number: int) -> bool:
    """Set the id, and say whether it is in force now: the call itself does not."""
    set_id(number)
    return set_id(INVALID_ID) & INVALID_ID == number
