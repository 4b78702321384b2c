"""Users and groups of this machine by name, from its passwd and group files and nowhere else.

The standard library's pwd and grp ask whatever nsswitch.conf names: that loads libraries at run time, and
may wait for a server. The accounts of a proxy's image are in its files.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Files are read this many bytes at a time.
CHUNK = 1 << 16

# In setuid(2) and its like, 2^32-1 says "leave it as it is": it is nobody's number.
HIGHEST_ID = 2**32 - 2


def user_id(name: str, path: str = "/etc/passwd") -> int | None:
    """The uid of the user, None where passwd(5) knows none of that name or can't be read."""
    return _third_field(name, path)


def group_id(name: str, path: str = "/etc/group") -> int | None:
    """The gid of the group, None where group(5) knows none of that name or can't be read."""
    return _third_field(name, path)


def _third_field(name: str, path: str) -> int | None:
    """The number in NAME:PASSWORD:NUMBER of the first line that has one; the C library passes over others, too."""
    try:
        wanted = name.encode("utf-8", "surrogateescape") + b":"
    except UnicodeEncodeError:
        return None
    if not name or ":" in name or "\n" in name:
        return None
    for line in _lines(path):
        if line.startswith(wanted):
            fields = line.split(b":", 3)
            number = fields[2] if len(fields) > 2 else b""
            if number.isdigit() and len(number) <= 10 and int(number) <= HIGHEST_ID:
                return int(number)
    return None


def _lines(path: str) -> Iterator[bytes]:
    """The file's lines, without their ends; none where it can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        begun = b""
        while chunk := os.read(descriptor, CHUNK):
            *whole, begun = (begun + chunk).split(b"\n")
            yield from whole
        yield begun
    except OSError:
        return
    finally:
        os.close(descriptor)
