"""Users and groups by name, from the passwd and group files only.

The standard library's pwd and grp use every source in nsswitch.conf, which loads libraries at run time and may wait for
a server. The accounts of a proxy's image are in its files.
"""

from __future__ import annotations

from istio_init.kernel.host.small_file import read_regular

# Bytes; an image has a few kilobytes, and a site with 100,000 users some megabytes.
LARGEST = 16 << 20

# In setuid(2) and similar calls, 2^32-1 means "unchanged", so it is no id.
HIGHEST_ID = 2**32 - 2


def user_id(name: str, path: str = "/etc/passwd") -> int | None:
    """The uid of the user, None where passwd(5) has none of that name or can't be read."""
    return _third_field(name, path)


def group_id(name: str, path: str = "/etc/group") -> int | None:
    """The gid of the group, None where group(5) has none of that name or can't be read."""
    return _third_field(name, path)


def _third_field(name: str, path: str) -> int | None:
    """The number in NAME:PASSWORD:NUMBER of the first line that has one; the C library skips other lines, too."""
    try:
        beginning = name.encode("utf-8", "surrogateescape") + b":"
    except UnicodeEncodeError:
        return None
    if not name or ":" in name or "\n" in name:
        return None
    for line in _lines(path):
        if line.startswith(beginning):
            fields = line.split(b":", 3)
            number = fields[2] if len(fields) > 2 else b""
            if number.isdigit() and len(number) <= 10 and int(number) <= HIGHEST_ID:
                return int(number)
    return None


def _lines(path: str) -> list[bytes]:
    """The file's lines, without their ends; none where it can't be read, is not a regular file or is too large."""
    try:
        return read_regular(path, LARGEST).split(b"\n")
    except OSError:
        return []
