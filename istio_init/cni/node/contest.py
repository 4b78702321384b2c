"""Backs off from a file that another program keeps changing: each write waits longer than the one before."""

from __future__ import annotations

# So many writes in a row are made at once: other programs set up a network in a few writes.
AT_ONCE = 4
LONGEST = 60.0  # seconds between two writes, at the longest
# A write that lasted this long, in seconds, ends a contest.
CALM = 30.0


class Contest:
    """For each file, how long to leave it alone after a write that another program has undone again and again."""

    def __init__(self) -> None:
        # By path: when it was written last (time.monotonic), how often in a row, and how long it then was left alone.
        self._files: dict[str, tuple[float, int, float]] = {}

    def wrote(self, path: str, now: float) -> tuple[int, float]:
        """Record a write; returns how many there were in a row, and for how many seconds to leave the file alone."""
        last, times, rest = self._files.get(path, (float("-inf"), 0, 0.0))
        times = times + 1 if now - last < rest + CALM else 1
        rest = min(2.0 ** (times - AT_ONCE - 1), LONGEST) if times > AT_ONCE else 0.0
        self._files[path] = now, times, rest
        return times, rest
