"""What the kernel says of its tables without libiptc: which exist, what is in them, which extensions it knows.

The socket options are those of <linux/netfilter_ipv4/ip_tables.h> and <linux/netfilter_ipv6/ip6_tables.h>.
They take their question from the buffer that the answer goes to, which Python's getsockopt can't do; so it is
the C library's.
"""

from __future__ import annotations

# The C half of the standard library's socket: `import socket` would cost a start several milliseconds.
import _socket as socket
import errno
import posix as os  # the C half of os
from _struct import Struct  # struct.py only hands it on

from istio_init.kernel.host.libc import Pointer, byref, function, get_errno, library
from istio_init.kernel.xtables.decode_table import unpack_table
from istio_init.kernel.xtables.encode_rule import INFO
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Self

    from istio_init.model.rules import Family, Table, TableName

# Files of the calling thread's network namespace that list the tables it has.
NAMES = {IPV4: "/proc/thread-self/net/ip_tables_names", IPV6: "/proc/thread-self/net/ip6_tables_names"}

_GET_INFO, _GET_ENTRIES = 64, 65
_GET_REVISION = {
    (IPV4, "match"): 66,
    (IPV4, "target"): 67,
    (IPV6, "match"): 68,
    (IPV6, "target"): 69,
}

# More than the names of the five tables there are, a line each.
_NAMES_BYTES = 4096

# The step that errors speak of.
OPENING = "open the table"
_ENTRIES_HEAD = Struct("=32sI4x")  # struct ipt_get_entries: name, bytes of entries
_REVISION = Struct("=29sB")  # struct xt_get_revision
_LENGTH = Struct("=I4x")  # socklen_t, and what a Pointer has behind it
_ATTEMPTS = 100

_getsockopt = function(library(None), "getsockopt")


def existing_tables(family: Family) -> tuple[TableName, ...] | None:
    """The tables that the namespace has, in the order in which a packet meets them; None where it may not be known.

    The file is root's: others need DAC_OVERRIDE to read it. A kernel without the family has no such file.
    """
    try:
        descriptor = os.open(NAMES[family], os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except PermissionError:
        return None
    try:
        names = os.read(descriptor, _NAMES_BYTES).split()
    finally:
        os.close(descriptor)
    return tuple(name for name in BUILTIN_CHAINS if name.encode() in names)


def is_empty(info: bytes) -> bool:
    """Whether a table has no rules and no chains of users', by its INFO: only policies, an entry each, and an end."""
    _, hooks, *_, entries, _ = INFO.unpack(info)
    empty: bool = entries == hooks.bit_count() + 1
    return empty


class TableSocket:
    """A raw socket to ask one family's tables; `with` closes it, or its end does. OSError is the kernel's."""

    def __init__(self, family: Family) -> None:
        """PermissionError without NET_RAW, OSError (EAFNOSUPPORT) where the kernel has no such family."""
        self._family = family
        domain, self._level = (
            (socket.AF_INET, socket.IPPROTO_IP) if family == IPV4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
        )
        try:
            self._socket = socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        except OSError as error:
            raise OSError(error.errno, OPENING) from error
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
        """The answer to IPT_SO_GET_INFO: xtables.INFO.

        Brings the table into being where the namespace doesn't have it.
        """
        info = bytearray(name.encode().ljust(INFO.size, b"\0"))
        self._ask(_GET_INFO, info)
        return bytes(info)

    def table(self, name: TableName) -> tuple[bytes, bytearray]:
        """The answers to IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, this without its head: what unpack_table takes.

        Brings the table into being as `info` does.
        """
        for _ in range(_ATTEMPTS):
            info = self.info(name)
            entries = self._entries(name, INFO.unpack(info)[-1])
            if entries is not None:
                return info, entries
        raise BlockingIOError(errno.EAGAIN, "the table changed each time it was looked at")

    def _entries(self, name: TableName, size: int) -> bytearray | None:
        """The answer to IPT_SO_GET_ENTRIES without its head; None where that is no longer of this size."""
        entries = bytearray(_ENTRIES_HEAD.size + size)
        _ENTRIES_HEAD.pack_into(entries, 0, name.encode(), size)
        try:
            self._ask(_GET_ENTRIES, entries)
        except BlockingIOError:
            return None
        del entries[: _ENTRIES_HEAD.size]  # moves nothing
        return entries

    def others(self, name: TableName, answers: tuple[bytes, bytearray]) -> Table:
        """The table in these answers of `table`, but without the rules in chains of ours."""
        return unpack_table(name, self._family, answers, own=False)

    def is_still(self, name: TableName, answers: tuple[bytes, bytearray]) -> bool:
        """Whether what is not ours in a table is as it was when these were the answers; counters may have moved."""
        # Their hooks, which each entry bears (comefrom), say where built-in chains begin, as INFO does.
        if self._entries(name, len(answers[1])) == answers[1]:
            return True
        return self.others(name, self.table(name)) == self.others(name, answers)

    def give(self, option: int, content: bytes | bytearray) -> None:
        """Have the kernel take what an option of setsockopt sets."""
        self._socket.setsockopt(self._level, option, content)

    def knows(self, kind: Literal["match", "target"], name: str, revision: int) -> bool:
        """Whether the kernel has an extension in this revision; asking loads its module, where there is one."""
        try:
            self._ask(_GET_REVISION[self._family, kind], bytearray(_REVISION.pack(name.encode(), revision)))
        except OSError:
            return False
        return True

    def _ask(self, option: int, question: bytearray) -> None:
        """Put a question to the kernel, which writes its answer over it."""
        _LENGTH.pack_into(self._length, 0, len(question))
        place = byref(Pointer.from_buffer(question))
        if _getsockopt(self._socket.fileno(), self._level, option, place, self._length_at):
            raise OSError(get_errno(), OPENING)
