"""Reads a file that a user names, or standard input."""

from __future__ import annotations

import os
import stat
import sys

from istio_init.errors_rare import OptionError

# Bytes; etcd rejects objects of more than 1.5 MiB.
LONGEST = 8 << 20
TOO_LONG = "no manifest of a pod is that long"


def read(flag: str, path: str, longest: int = LONGEST, hint: str = TOO_LONG) -> str:
    """The file's text, standard input's for `-`. OptionError, naming the flag, if it can't be read.

    `longest` is in bytes; `hint` is what the error says of a longer file.
    """
    return decode(flag, path, read_bytes(flag, path, longest, hint)).removeprefix("\ufeff")


def read_bytes(flag: str, path: str, longest: int = LONGEST, hint: str = TOO_LONG) -> bytes:
    """The file's bytes, standard input's for `-`; the parameters and errors are those of `read`."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(longest + 1) if sys.stdin else b""
        else:
            _refuse_named_pipe(flag, path)
            with open(path, "rb") as file:
                data = file.read(longest + 1)
    except OSError as error:
        raise OptionError(flag, path, os.strerror(error.errno or 0)) from None
    except ValueError as error:  # a NUL in the path
        raise OptionError(flag, path, str(error)) from None
    if len(data) > longest:
        raise OptionError(flag, path, f"longer than {longest >> 20} MiB: {hint}")
    return data


def _refuse_named_pipe(flag: str, path: str) -> None:
    """OptionError for a named pipe, which may never get a writer; a shell's <(command), below /dev/fd, has one."""
    if stat.S_ISFIFO(os.stat(path).st_mode) and not os.path.abspath(path).startswith(("/dev/", "/proc/")):
        raise OptionError(flag, path, "a named pipe; give a file, or - for standard input")


def decode(flag: str, path: str, data: bytes) -> str:
    """The bytes as text, with a byte order mark if there is one. OptionError if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise OptionError(flag, path, "not text in UTF-8") from None
