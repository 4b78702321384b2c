"""An rtnetlink socket: requests, dumps, and the kernel's error messages.

The layouts are those of <linux/netlink.h>: native byte order, everything padded to four bytes.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import _struct as struct  # struct.py only re-exports it
import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond
import sys

import istio_init.kernel.host.error_numbers as errno
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
INTERFACE = struct.Struct("=16si20x")  # struct ifreq: name, index
SIOCGIFNAME, SIOCGIFINDEX = 0x8910, 0x8933  # <linux/sockios.h>

# Attempts at a dump or a request: of a dump, the state changed during each; of either, the answer was lost.
ATTEMPTS = 16
# The kernel fills at most 32 KiB at a time.
BUFFER = 1 << 16

# Errors that say nothing about the request: an answer that found no memory or no room, or a call that was cut short.
PASSING = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})


class AnswerLost(errors.KernelError):
    """The kernel's answer did not arrive: a request may have been carried out, or not."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data`, by their type; the last one of each type counts."""
    values = {}
    head, unpack = ATTRIBUTE.size, ATTRIBUTE.unpack_from
    offset, last = 0, len(data) - head
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < head:
            break
        values[kind & NLA_TYPE_MASK] = data[offset + head : offset + length]
        offset += (length + 3) & ~3
    return values


# Said where Python has no netlink sockets: on macOS, Windows and the BSDs.
NEEDS_LINUX = "needs Linux: this system has no netlink sockets"


class RtnetlinkChannel:
    """An rtnetlink socket in the calling thread's network namespace, open within its `with`.

    KernelError where it can't be opened.
    """

    def __enter__(self) -> Self:
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            # Connected to the kernel, the socket takes no message from another process.
            self._socket.connect((0, 0))
        except OSError as error:
            raise _broken("opened", error) from error
        except AttributeError:
            raise errors.KernelError(NEEDS_LINUX) from None
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:
                pass  # an older kernel, or a sandbox: it explains less and filters less
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Send one request and wait for the acknowledgement. OSError, with the kernel's text, where it refuses.

        AnswerLost where it is not known whether the request was carried out.
        """
        self._send(kind, flags | NLM_F_ACK, body)
        for answer, answer_flags, data in self._messages():
            if answer == NLMSG_ERROR:
                if number := -NUMBER.unpack_from(data)[0]:
                    raise OSError(number, extended(answer_flags, data)[0] or os.strerror(number))
                return

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """All messages of a dump, without their headers. KernelError, which names `what`, where the kernel refuses."""
        lost: AnswerLost | None = None
        for _ in range(ATTEMPTS):
            try:
                self._send(kind, NLM_F_DUMP, body)
                messages, interrupted = self._dumped(what)
            except AnswerLost as error:
                lost = error
                continue
            if not interrupted:
                return messages
        if lost is not None:
            raise lost
        text = f"the {what} changed during each of {ATTEMPTS} attempts to read them; run again"
        raise errors.KernelError(text, errno.EINTR)

    def interface_index(self, name: str) -> int:
        """The number of an interface. OSError (ENODEV) where there is none of that name."""
        answer = fcntl.ioctl(self._socket.fileno(), SIOCGIFINDEX, INTERFACE.pack(name.encode(), 0))
        index: int = INTERFACE.unpack(answer)[1]
        return index

    def interface_name(self, index: int) -> str:
        """The name of an interface; empty where there is none of that number. OSError for any other failure.

        Asked with this socket, as if_indextoname(3) would open another one, for which there may be no descriptor.
        """
        try:
            answer = fcntl.ioctl(self._socket.fileno(), SIOCGIFNAME, INTERFACE.pack(b"", index))
        except OSError as error:
            if error.errno not in {errno.ENODEV, errno.ENXIO}:
                raise
            return ""
        name: bytes = INTERFACE.unpack(answer)[0]
        return name.partition(b"\0")[0].decode(errors="surrogateescape")

    def _dumped(self, what: str) -> tuple[list[bytes], bool]:
        """The messages of the dump in progress, and whether it is inconsistent because of a change."""
        messages: list[bytes] = []
        interrupted = False
        for answer, flags, data in self._messages():
            interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
            if answer not in (NLMSG_DONE, NLMSG_ERROR):
                messages.append(data)
                continue
            if number := -NUMBER.unpack_from(data)[0]:
                kind = AnswerLost if number in PASSING else errors.KernelError
                raise kind(f"the {what} can't be read: {os.strerror(number)}", number)
            break
        return messages, interrupted

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        try:
            self._socket.send(header + body)
        except OSError as error:
            raise _broken("written to", error) from error

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        """The answers to the last request as they arrive, without an end: type, flags, data."""
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
    """The error for a call on the socket that failed, whatever was requested."""
    number = error.errno or 0
    text = f"a netlink socket can't be {what}: {error.strerror}"
    if what != "opened" and number in PASSING:
        return AnswerLost(f"{text}: the kernel is short of memory, or another program floods it; run again", number)
    return errors.KernelError(f"{text}: {no_socket(number, 'the kernel has no rtnetlink')}", number)


def no_socket(number: int, lacking: str) -> str:
    """Why there is no netlink socket, by the error's number; `lacking` says that the kernel has no such kind."""
    # First: where no file can be opened, nothing more can be imported.
    if remedy := errors.limit_remedy(number):
        return remedy
    from istio_init.kernel.host import denial

    return denial.explain_socket(number, lacking)


def extended(flags: int, data: bytes) -> tuple[str, int]:
    """The kernel's text in an NLMSG_ERROR, and the offset in the request of the attribute that it rejected.

    Empty and 0 for what the kernel did not say.
    """
    if not flags & NLM_F_ACK_TLVS:
        return "", 0
    # The errno, then the request, or its header only where the answer is capped.
    request = HEADER.size if flags & NLM_F_CAPPED else HEADER.unpack_from(data, NUMBER.size)[0]
    attrs = attributes(data[NUMBER.size + request :])
    text = attrs.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace").rstrip(".")
    return text, int.from_bytes(attrs.get(NLMSGERR_ATTR_OFFS, b""), sys.byteorder)
