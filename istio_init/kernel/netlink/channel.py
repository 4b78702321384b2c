"""An rtnetlink socket: requests, dumps, and the kernel's refusals in its own words.

The layouts are those of <linux/netlink.h>: native byte order, everything padded to four bytes.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import _struct as struct  # struct.py only hands it on
import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
import sys

from istio_init import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS = 1, 2
NLA_TYPE_MASK = 0x3FFF

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
NUMBER = struct.Struct("=i")  # a negative errno, or 0

# A dump that changed under the reader is read again; more often than this nobody changes things by chance.
DUMP_ATTEMPTS = 16
# The kernel fills at most 32 KiB at a time.
BUFFER = 1 << 16


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes that `data` is made of, by their type; one that is given twice counts as the last says."""
    found = {}
    head, unpack = ATTRIBUTE.size, ATTRIBUTE.unpack_from
    offset, last = 0, len(data) - head
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < head:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + head : offset + length]
        offset += (length + 3) & ~3
    return found


class RtnetlinkChannel:
    """An rtnetlink socket in the calling thread's network namespace, open within its `with`.

    KernelError where there can't be one.
    """

    def __enter__(self) -> Self:
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            # Connected to the kernel, the socket takes no message from another process.
            self._socket.connect((0, 0))
        except OSError as error:
            raise _broken("opened", error) from error
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:
                pass  # an older kernel, or a sandbox: it says less and filters less
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Ask for one thing and wait for the answer; OSError if it is no, in the kernel's own words if it has any."""
        self._send(kind, flags | NLM_F_ACK, body)
        for answer, answer_flags, data in self._messages():
            if answer == NLMSG_ERROR:
                if number := -NUMBER.unpack_from(data)[0]:
                    raise OSError(number, extended(answer_flags, data)[0] or os.strerror(number))
                return

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """All messages of a dump, without their headers. KernelError, which says `what`, where the kernel refuses."""
        for _ in range(DUMP_ATTEMPTS):
            self._send(kind, NLM_F_DUMP, body)
            found, torn = self._dumped(what)
            if not torn:
                return found
        text = f"the {what} changed under each of {DUMP_ATTEMPTS} attempts to read them; try again"
        raise errors.KernelError(text, errno.EINTR)

    def _dumped(self, what: str) -> tuple[list[bytes], bool]:
        """The messages of the dump under way, and whether things changed meanwhile."""
        found: list[bytes] = []
        torn = False
        for answer, flags, data in self._messages():
            torn = torn or bool(flags & NLM_F_DUMP_INTR)
            if answer not in (NLMSG_DONE, NLMSG_ERROR):
                found.append(data)
                continue
            if number := -NUMBER.unpack_from(data)[0]:
                raise errors.KernelError(f"the {what} can't be read: {os.strerror(number)}", number)
            break
        return found, torn

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        try:
            self._socket.send(header + body)
        except OSError as error:
            raise _broken("written to", error) from error

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        """The answers to the last request as they come in, without an end: type, flags, data."""
        while True:
            try:
                data = self._socket.recv(BUFFER)
            except OSError as error:
                raise _broken("read from", error) from error
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                if sequence == self._sequence:
                    yield kind, flags, data[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3


def _broken(what: str, error: OSError) -> errors.KernelError:
    """The socket itself does not work: nothing that was asked for is at fault."""
    number = error.errno or 0
    why = no_socket(number, "the kernel has no rtnetlink")
    return errors.KernelError(f"an rtnetlink socket can't be {what}: {error.strerror}: {why}", number)


def no_socket(number: int, lacking: str) -> str:
    """Why there is no netlink socket, by the error's number; `lacking` is of a kernel that knows none of that kind."""
    if number in {errno.EMFILE, errno.ENFILE}:
        # Said here: where no file can be opened, nothing more can be imported.
        return "raise the limit of open files (ulimit -n)"
    from istio_init.kernel.host import denial

    return denial.explain_socket(number, lacking)


def extended(flags: int, data: bytes) -> tuple[str, int]:
    """The kernel's words in an NLMSG_ERROR, and the offset in the request of the attribute that it rejected.

    Empty and 0 for what the kernel did not say.
    """
    if not flags & NLM_F_ACK_TLVS:
        return "", 0
    # The errno, then the request: all of it, or where the answer is capped its header alone.
    request = HEADER.size if flags & NLM_F_CAPPED else HEADER.unpack_from(data, NUMBER.size)[0]
    said = attributes(data[NUMBER.size + request :])
    words = said.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace").rstrip(".")
    return words, int.from_bytes(said.get(NLMSGERR_ATTR_OFFS, b""), sys.byteorder)
