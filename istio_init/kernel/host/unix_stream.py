"""A connection to a unix socket: lines out and in, all within one deadline, without the module socket."""

from __future__ import annotations

import _socket  # socket.py imports enum and selectors; the functions in C are all that is needed
import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
import struct
import time

# struct timeval: seconds, microseconds.
_TIME = struct.Struct("ll")
CHUNK = 64 << 10


class UnixStream:
    """A connection to the socket at a path; OSError if nothing listens there.

    `seconds` is how long connecting and all calls together may take; TimeoutError after that.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._data = b""
        try:
            # Blocking, and limited by the kernel: connect(2) of a socket that does not block fails where many wait.
            self._limit()
            self._connect(path)
        except BaseException:
            self.close()
            raise

    def _connect(self, path: str) -> None:
        try:
            self._socket.connect(path)
        except BlockingIOError as error:
            raise _late() from error

    def extend(self, seconds: float) -> None:
        """Start a new deadline."""
        self._end = time.monotonic() + seconds

    def send(self, data: bytes) -> None:
        """Send bytes; OSError where the other end has closed."""
        try:
            while data:
                self._limit()
                data = data[self._socket.send(data, _socket.MSG_NOSIGNAL) :]
        except BlockingIOError as error:
            raise _late() from error

    def line(self, longest: int) -> bytes:
        """The next line, without its end; OSError where the other end closes before, or it has more than `longest`."""
        while b"\n" not in self._data:
            if len(self._data) > longest:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            self._limit()
            try:
                chunk = self._socket.recv(CHUNK)
            except BlockingIOError as error:
                raise _late() from error
            if not chunk:
                raise OSError(errno.ECONNRESET, "closed without an answer")
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        return line

    def _limit(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise _late()
        # Zero would be no limit at all.
        limit = _TIME.pack(int(left), max(int(left % 1 * 1e6), 1))
        for name in (_socket.SO_SNDTIMEO, _socket.SO_RCVTIMEO):
            self._socket.setsockopt(_socket.SOL_SOCKET, name, limit)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _late() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
