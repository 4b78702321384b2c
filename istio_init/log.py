"""Log lines in the form of Istio's logs: time, level, message; or one JSON object a line."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import time

from istio_init.errors import printable

LEVELS = {"none": 0, "fatal": 1, "error": 2, "warn": 3, "info": 4, "debug": 5}
STDOUT, STDERR = 1, 2
# O_NONBLOCK: opening a named pipe must not wait for a reader.
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

# The file for the reason of a failure, which Kubernetes shows in the pod's status; set by the image's entry point.
termination_log = ""
TERMINATION_LOG_LIMIT = 4096


def write_termination_message(message: str) -> None:
    """Write the reason of a failure to `termination_log`, if that is a regular file; never creates it, never fails."""
    if not termination_log:
        return
    try:
        descriptor = os.open(termination_log, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_mode & 0o170000 == 0o100000:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, printable(message).encode()[:TERMINATION_LOG_LIMIT])
        finally:
            os.close(descriptor)
    except OSError:
        pass


# The last second in a log line, and its text.
_last = -1, ""


def now() -> str:
    """The current time in UTC with microseconds, as in a log line."""
    global _last  # noqa: PLW0603 (lines of the same second share its text)
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    last_second, text = _last
    if seconds != last_second:
        year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
        # Not strftime, which reads the time zone's file first.
        text = f"{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        _last = seconds, text
    return f"{text}.{nanoseconds // 1000:06}Z"


class Log:
    """Writes lines up to a level to its targets; a target that can't be written is ignored.

    `targets` are stdout, stderr or paths of files, which are appended to; the default is standard error.
    """

    def __init__(self, level: str = "info", *, as_json: bool = False, targets: tuple[str, ...] = ()) -> None:
        self._level, self._as_json, self._targets = LEVELS[level], as_json, targets
        self._outputs: tuple[int, ...] = () if targets else (STDERR,)

    def error(self, message: str) -> None:
        """Log the error that ends the run; it also becomes the termination message."""
        write_termination_message(message)
        self._write("error", message)

    def warn(self, message: str) -> None:
        """Log a problem that does not end the run."""
        self._write("warn", message)

    def info(self, message: str) -> None:
        """Log a step of the run."""
        self._write("info", message)

    def debug(self, message: str) -> None:
        """Log details for developers."""
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
            line = f"{stamp}\t{level}\t{printable(message)}\n"
        data = line.encode()
        for output in self._outputs or self._opened():
            try:
                os.write(output, data)
            except OSError:
                pass

    def _opened(self) -> tuple[int, ...]:
        """The targets' file descriptors; standard error replaces a file that can't be opened."""
        outputs, failures = [], []
        for target in self._targets:
            try:
                outputs.append({"stdout": STDOUT, "stderr": STDERR}.get(target) or os.open(target, APPEND, 0o644))
            except (OSError, ValueError) as error:
                outputs.append(STDERR)
                failures.append(
                    f"--log_target: {target!r}: {getattr(error, 'strerror', error)}; logging to standard error instead"
                )
        self._outputs = tuple(dict.fromkeys(outputs))
        for failure in failures:
            self.warn(failure)
        return self._outputs
