"""Standard output for the interactive programs: a failure to write is an error in one line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from istio_init.errors import InitError

if TYPE_CHECKING:
    from collections.abc import Callable


class StandardOutput:
    """Standard output; a failure to write is an InitError, and what its encoding lacks is written with escapes."""

    def __init__(self) -> None:
        # None if it is closed (kernel/host/process.py).
        self._stream: TextIO = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (to the end)
        self._failure: InitError | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (the stream's own)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As io.TextIOBase.write."""
        encoding = self._stream.encoding or "utf-8"
        self._call(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """As io.IOBase.flush."""
        self._call(self._stream.flush)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        if self._failure is not None:
            # Typer probes a stream before it prints help, and swallows that first error.
            raise self._failure
        try:
            function(*arguments)
        except BrokenPipeError:
            self._discard()
            raise
        except OSError as error:
            self._discard()
            self._failure = InitError(f"standard output: can't be written: {error.strerror}")
            raise self._failure from error

    def _discard(self) -> None:
        """Redirect the stream to /dev/null, since Python's shutdown flushes it again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
