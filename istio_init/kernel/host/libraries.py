"""Shared libraries as the dynamic loader finds them."""

from __future__ import annotations

import ctypes


def file_of(soname: str) -> str:
    """The file of a library, which has the version in its name; empty if it is missing. Loads the library."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return ""
    stem = soname.partition(".")[0]
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = (line.rstrip("\n").partition("/")[2] for line in maps)
        mapped = next((path for path in paths if path.rpartition("/")[2].startswith(stem)), "")
    return f"/{mapped}" if mapped else soname
