"""Receives the reports of the plugin's calls, and prints their log lines with the agent's own."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from istio_init.log import STDERR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_init.log import Log

# Lines of one report, and characters of one, as the plugin's own log has them at most.
MOST_LINES, LONGEST_LINE = 256, 16 << 10


class Reports:
    """Takes the reports. `counted` is called with each outcome."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.counted: Callable[[Mapping[str, Any]], None] = lambda _outcome: None

    async def take(self, request: Mapping[str, Any]) -> None:
        """Take one report; what is malformed is left out. A report has no answer."""
        lines = request.get("lines")
        for line in lines[:MOST_LINES] if isinstance(lines, list) else ():
            self._print(line)
        outcome = request.get("outcome")
        if isinstance(outcome, dict):
            self.counted(outcome)

    def _print(self, line: object) -> None:
        """Print a plugin's line as it is, if it is one line of a JSON object."""
        if not isinstance(line, str) or len(line) > LONGEST_LINE or not line.isascii() or not line.isprintable():
            return
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict):
            try:
                os.write(STDERR, f"{line}\n".encode())
            except OSError:
                pass  # no reader; the file on the node has the line as well
