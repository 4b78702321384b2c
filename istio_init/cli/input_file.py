"""The text of a file that a user names, or of standard input."""

from __future__ import annotations

import os
import sys

from istio_init.errors_rare import OptionError

# Bytes; etcd takes no object of more than 1.5 MiB.
LONGEST = 8 << 20


def read(flag: str, path: str, longest: int = LONGEST, what: str = "manifest of a pod") -> str:
    """The file's text, standard input's for `-`. OptionError, naming the flag, where there is none to be had.

    `longest` is in bytes, `what` the kind of file that is never longer.
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read(longest + 1) if sys.stdin else b""
        else:
            with open(path, "rb") as file:
                data = file.read(longest + 1)
        if len(data) > longest:
            raise OptionError(flag, path, f"longer than {longest >> 20} MiB: no {what}")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise OptionError(flag, path, os.strerror(error.errno or 0)) from None
    except ValueError as error:
        why = "not text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise OptionError(flag, path, why) from None
