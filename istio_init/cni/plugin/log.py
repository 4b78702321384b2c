"""The plugin's log: JSON lines on standard error and in a file of limited size."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.cni.plugin.fast_json import encode
from istio_init.kernel.host.logfile import append
from istio_init.log import LEVELS, STDERR, Log, now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# In bytes. A line is never longer, whatever is in it; of one that would be, message and facts are cut.
LONGEST_LINE = 16 << 10
LONGEST_MESSAGE, LONGEST_FACT = 8 << 10, 1 << 10


class PodLog(Log):
    """A log with `facts` in every line: the pod's name, its namespace, the sandbox, the decision, the reason.

    The file gets the lines up to `level`, standard error those of them up to `aloud`. The file takes at most `limit`
    bytes and is then moved to PATH.1, in the place of the one before. Where it can't be written, one line says so and
    standard error has to do: logging is no reason to fail.
    """

    def __init__(self, level: str, path: str, limit: int, aloud: str = "debug") -> None:
        super().__init__(level)
        self._path, self._limit, self._aloud = path, limit, LEVELS[aloud]
        self.facts: Mapping[str, str] = {}
        # The lines that the node agent gets; None where there is none.
        self.kept: list[str] | None = None

    def know(self, **facts: str) -> None:
        """Add facts to each following line."""
        self.facts = {**self.facts, **facts}

    def _write(self, level: str, message: str) -> None:
        if LEVELS[level] > self._level:
            return
        data = line(level, message, self.facts)
        if LEVELS[level] <= self._aloud:
            self._tell(data)
        if self.kept is not None:
            self.kept.append(data.decode().rstrip("\n"))
        if not self._path:
            return
        try:
            append(self._path, data, self._limit)
        except (OSError, ValueError) as error:
            path, self._path = self._path, ""
            self.warn(f"log_file: {path}: can't be written, what follows is here alone: {error}")

    def _tell(self, data: bytes) -> None:
        """Write a whole line to standard error, if it is open."""
        try:
            while data:
                data = data[os.write(STDERR, data) :]
        except OSError:
            pass


def line(level: str, message: str, facts: Mapping[str, str]) -> bytes:
    """One line of JSON in ASCII; longer ones than LONGEST_LINE are cut, and say so."""
    begin = {"level": level, "time": now(), "scope": "cni"}
    text = encode({**begin, "msg": message, **facts})
    if len(text) >= LONGEST_LINE:
        short = {name: _cut(fact, LONGEST_FACT) for name, fact in facts.items()}
        text = encode({**begin, "msg": _cut(message, LONGEST_MESSAGE), **short, "cut": True})
    return f"{text}\n".encode()


def _cut(text: str, longest: int) -> str:
    """As much of a text's beginning as has at most that many bytes in JSON, or little less."""
    text = text[:longest]
    while len(encode(text)) > longest:
        text = text[: len(text) * 3 // 4]
    return text
