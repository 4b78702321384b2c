"""The legacy tables through socket options: which exist, what is in them, which extensions the kernel has.

The options are those of <linux/netfilter_ipv4/ip_tables.h> and <linux/netfilter_ipv6/ip6_tables.h>. Their argument and
their result share a buffer, which Python's getsockopt does not support, so the C library's is called.
"""

from __future__ import annotations

# The C half of the standard library's socket: `import socket` would cost a start several milliseconds.
import _socket as socket
from _struct import Struct  # struct.py only re-exports it

import istio_init.kernel.host.error_numbers as errno
from istio_init.kernel.host.libc import Pointer, byref, function, get_errno, library
from istio_init.kernel.xtables.encode_rule import INFO
from istio_init.model.rules import IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Self

    from istio_init.model.rules import Family, Table, TableName

_GET_INFO, _GET_ENTRIES = 64, 65
_GET_REVISION = {
    (IPV4, "match"): 66,
    (IPV4, "target"): 67,
    (IPV6, "match"): 68,
    (IPV6, "target"): 69,
}

# The steps at which the kernel itself may refuse.
OPENING, COMMITTING = "open the table", "commit the table"
_ENTRIES_HEAD = Struct("=32sI4x")  # struct ipt_get_entries: name, bytes of entries
_REVISION = Struct("=29sB")  # struct xt_get_revision
_LENGTH = Struct("=I4x")  # socklen_t, padded to the size of a Pointer
_ATTEMPTS = 100

# Temporary errors of a read: memory was short for a moment, or the call was interrupted.
PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EINTR, errno.EBUSY, errno.ENOBUFS, errno.ENOSPC})
READS = 5

_getsockopt = function(library(None), "getsockopt")


class StepError(Exception):
    """A step of reading or editing a table failed: `step` names it, `errno` is the kernel's or libiptc's number."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step, self.errno = step, number


def is_empty(info: bytes) -> bool:
    """Whether a table has neither rules nor user-defined chains, by its INFO: an entry for each policy, and the end."""
    _, hooks, *_, entries, _ = INFO.unpack(info)
    empty: bool = entries == hooks.bit_count() + 1
    return empty


class TableSocket:
    """A raw socket for the tables of one family, closed by `with` or with the object. StepError where a call fails."""

    def __init__(self, family: Family) -> None:
        """StepError with EPERM without NET_RAW, with EAFNOSUPPORT where the kernel does not have the family."""
        self._family = family
        domain, self._level = (
            (socket.AF_INET, socket.IPPROTO_IP) if family == IPV4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
        )
        try:
            self._socket = socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        except OSError as error:
            raise StepError(OPENING, error.errno or 0) from error
        self._length = bytearray(_LENGTH.size)
        self._length_at = byref(Pointer.from_buffer(self._length))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()

    def info(self, name: TableName) -> bytes:
        """The answer to IPT_SO_GET_INFO: encode_rule.INFO. Creates the table where the namespace does not have it."""
        info = bytearray(name.encode().ljust(INFO.size, b"\0"))
        self._read(_GET_INFO, info)
        return bytes(info)

    def table(self, name: TableName) -> tuple[bytes, bytearray]:
        """The answers to IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the latter without its head: see unpack_table.

        Creates the table as `info` does. StepError (EAGAIN) where another program changes it before each attempt ends.
        """
        for _ in range(_ATTEMPTS):
            info = self.info(name)
            entries = self._entries(name, INFO.unpack(info)[-1])
            if entries is not None:
                return info, entries
        raise StepError(OPENING, errno.EAGAIN)

    def _entries(self, name: TableName, size: int) -> bytearray | None:
        """The answer to IPT_SO_GET_ENTRIES without its head; None where its size has changed."""
        entries = bytearray(_ENTRIES_HEAD.size + size)
        _ENTRIES_HEAD.pack_into(entries, 0, name.encode(), size)
        try:
            self._read(_GET_ENTRIES, entries, final=errno.EAGAIN)
        except StepError as error:
            if error.errno != errno.EAGAIN:
                raise
            return None
        del entries[: _ENTRIES_HEAD.size]  # moves nothing
        return entries

    def without_istio_chains(self, name: TableName, answers: tuple[bytes, bytearray]) -> Table:
        """The table in these answers of `table`, with Istio's chains, but without the rules in them."""
        from istio_init.kernel.xtables.unpack_table import unpack_table

        return unpack_table(name, self._family, answers, own=False)

    def is_still(self, name: TableName, answers: tuple[bytes, bytearray]) -> bool:
        """Whether the part of a table that is not Istio's is as in these answers; counters do not matter."""
        # Each entry's `comefrom` has its hooks, and so tells where built-in chains begin, as INFO does.
        if self._entries(name, len(answers[1])) == answers[1]:
            return True
        return self.without_istio_chains(name, self.table(name)) == self.without_istio_chains(name, answers)

    def give(self, option: int, content: bytes | bytearray) -> None:
        """Set an option with setsockopt; OSError where the kernel refuses."""
        self._socket.setsockopt(self._level, option, content)

    def ask(self, option: int, buffer: bytearray) -> bool:
        """Have the kernel write the answer of another option over the question; whether it did."""
        return not self._call(option, buffer)

    def knows(self, kind: Literal["match", "target"], name: str, revision: int) -> bool:
        """Whether the kernel has an extension in this revision; loads its module, where there is one."""
        return not self._call(_GET_REVISION[self._family, kind], bytearray(_REVISION.pack(name.encode(), revision)))

    def _read(self, option: int, buffer: bytearray, final: int = 0) -> None:
        """Have the kernel write its answer over the question; again after an error that may pass, but for `final`."""
        for _ in range(READS):
            number = self._call(option, buffer)
            if number == final or number not in PASSING:
                break
        if number:
            raise StepError(OPENING, number)

    def _call(self, option: int, buffer: bytearray) -> int:
        """The error number of getsockopt, 0 for success."""
        _LENGTH.pack_into(self._length, 0, len(buffer))
        place = byref(Pointer.from_buffer(buffer))
        if _getsockopt(self._socket.fileno(), self._level, option, place, self._length_at):
            number: int = get_errno()
            return number
        return 0
