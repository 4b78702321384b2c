"""The text of a file that a user names, or of standard input."""

from __future__ import annotations

import os
import stat
import sys

from istio_init.errors_rare import OptionError

# Bytes; etcd takes no object of more than 1.5 MiB.
LONGEST = 8 << 20


def read(flag: str, path: str, longest: int = LONGEST, what: str = "manifest of a pod") -> str:
    """The file's text, standard input's for `-`. OptionError, naming the flag, where there is none to be had.

    `longest` is in bytes, `what` the kind of file that is never longer.
    """
    return decode(flag, path, read_bytes(flag, path, longest, what)).removeprefix("\ufeff")


def read_bytes(flag: str, path: str, longest: int = LONGEST, what: str = "manifest of a pod") -> bytes:
    """The file's bytes, standard input's for `-`; the parameters and errors are those of `read`."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(longest + 1) if sys.stdin else b""
        elif not path.startswith("/dev/") and stat.S_ISFIFO(os.stat(path).st_mode):
            # Nobody may ever write to it; what a shell makes of <(...) is below /dev/fd.
            raise OptionError(flag, path, "no regular file")
        else:
            _refuse_waiting(flag, path)
            with open(path, "rb") as file:
                data = file.read(longest + 1)
    except OSError as error:
        raise OptionError(flag, path, os.strerror(error.errno or 0)) from None
    except ValueError as error:  # a NUL in the path
        raise OptionError(flag, path, str(error)) from None
    if len(data) > longest:
        raise OptionError(flag, path, f"longer than {longest >> 20} MiB: no {what}")
    return data


def _refuse_waiting(flag: str, path: str) -> None:
    """OptionError for a named pipe, whose writer may never come; a shell's <(command) has one that is there."""
    if stat.S_ISFIFO(os.stat(path).st_mode) and not os.path.abspath(path).startswith(("/dev/", "/proc/")):
        raise OptionError(flag, path, "a named pipe; give a file, or - for standard input")


def decode(flag: str, path: str, data: bytes) -> str:
    """The bytes as text, a byte order mark kept. OptionError where they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise OptionError(flag, path, "not text in UTF-8") from None
