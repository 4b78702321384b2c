"""Log lines on standard error, in the form of Istio's logs: time, level, message; or one JSON object a line."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import time

LEVELS = {"none": 0, "fatal": 1, "error": 2, "warn": 3, "info": 4, "debug": 5}
STDERR = 2

# Where the reason of a failure is left beside the log, as Kubernetes wants it; the image's entry point names it.
termination_log = ""
TERMINATION_LOG_LIMIT = 4096


def write_termination_message(message: str) -> None:
    """Write why the run ends to `termination_log`, if such a file stands there; never makes one, never fails."""
    if not termination_log:
        return
    try:
        descriptor = os.open(termination_log, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_mode & 0o170000 == 0o100000:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, message.encode("utf-8", "backslashreplace")[:TERMINATION_LOG_LIMIT])
        finally:
            os.close(descriptor)
    except OSError:
        pass


# The last second that was told, and how.
_last = -1, ""


def now() -> str:
    """The time in UTC as a log line has it, with microseconds."""
    global _last  # noqa: PLW0603 (lines of the same second begin alike)
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    known, written = _last
    if seconds != known:
        year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
        # Not strftime, which reads the time zone's file first.
        written = f"{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        _last = seconds, written
    return f"{written}.{nanoseconds // 1000:06}Z"


class Log:
    """Writes lines up to a level to standard error; a standard error that is gone is no reason to fail."""

    def __init__(self, level: str = "info", *, as_json: bool = False) -> None:
        self._level, self._as_json = LEVELS[level], as_json

    def error(self, message: str) -> None:
        """Something that ended the run, or is to."""
        write_termination_message(message)
        self._write("error", message)

    def warn(self, message: str) -> None:
        """Something that the user should know, and that the run goes on without."""
        self._write("warn", message)

    def info(self, message: str) -> None:
        """A step that was taken."""
        self._write("info", message)

    def debug(self, message: str) -> None:
        """What only a developer wants to know."""
        self._write("debug", message)

    def _write(self, level: str, message: str) -> None:
        if LEVELS[level] > self._level:
            return
        stamp = now()
        if self._as_json:
            # json.encoder's C half; importing json brings in re.
            from _json import encode_basestring_ascii as quoted

            line = f'{{"level":"{level}","time":"{stamp}","scope":"default","msg":{quoted(message)}}}\n'
        else:
            line = f"{stamp}\t{level}\t{message}\n"
        try:
            os.write(STDERR, line.encode("utf-8", "backslashreplace"))
        except OSError:
            pass
