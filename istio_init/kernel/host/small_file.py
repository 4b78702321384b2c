"""Small files of the machine or of a container, which may be anything: read within bounds, and never waited for."""

from __future__ import annotations

import errno
import posix as os  # the C half of os; the other half costs a start a millisecond

_FORMAT, _REGULAR = 0o170000, 0o100000  # <linux/stat.h>
# O_NONBLOCK: opening a pipe does not wait for its writer. O_NOCTTY: a terminal does not become this process's.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CHUNK = 1 << 16  # bytes; mostly the whole file, and no more than the allocator has at hand


def read_regular(path: str, largest: int) -> bytes:
    """The content of a regular file of at most so many bytes. OSError (EINVAL, EFBIG) for anything else.

    A pipe is not waited for: its writer could keep a root process for as long as it likes.
    """
    return regular_content(os.open(path, OPEN_FLAGS), largest)


def regular_content(descriptor: int, largest: int) -> bytes:
    """The same for a file that is open already, which is closed."""
    try:
        if os.fstat(descriptor).st_mode & _FORMAT != _REGULAR:
            raise OSError(errno.EINVAL, "not a regular file")
        content = b""
        while len(content) <= largest and (chunk := os.read(descriptor, _CHUNK)):
            content += chunk
    finally:
        os.close(descriptor)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"longer than {largest} bytes")
    return content
