"""Who holds a lock that somebody waits for."""

from __future__ import annotations

import os


def holders(descriptor: int) -> str:
    """Who has locked an open file, by proc(5)'s table of locks: `pid 12 (iptables)`."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END; those who wait have an arrow behind the number.
    with open("/proc/locks", encoding="ascii", errors="replace") as locks:
        lines = [line.split() for line in locks]
    found = [_process(words[4]) for words in lines if words[1] == "FLOCK" and words[5] == file]
    return ", ".join(found) or "a process that can't be seen from here"


def _process(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:
        return f"pid {pid}"
