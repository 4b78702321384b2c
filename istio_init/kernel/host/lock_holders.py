"""The processes that hold a lock, for an error or a log line."""

from __future__ import annotations

import os

_UNKNOWN = "a process that can't be seen from here"


def holders(descriptor: int) -> str:
    """The processes that have locked an open file, from proc(5)'s list of locks: `pid 12 (iptables)`."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        # NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END; a waiting process has an arrow after the number.
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            lines = [line.split() for line in locks]
    except OSError:
        return _UNKNOWN
    processes = [_process(words[4]) for words in lines if len(words) > 5 and words[1] == "FLOCK" and words[5] == file]
    return ", ".join(processes) or _UNKNOWN


def _process(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:
        return f"pid {pid}"
