"""Keeps the plugin installed: repeats the installation, logs its actions, and logs a lasting error once."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from istio_init.cni.node import install
from istio_init.cni.node.contest import Contest
from istio_init.errors import InitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from istio_init.cni.node.directories import Directories
    from istio_init.log import Log


class Keeper:
    """Installs the plugin at each attempt, and claims its program, for the length of a `with`.

    `entry` gives the plugin's entry in the network as it is to be now; it may raise InitError.
    """

    def __init__(self, log: Log, places: Directories, source: str, entry: Callable[[], Mapping[str, Any]]) -> None:
        self._log, self._places, self._source, self._entry = log, places, source, entry
        self._claim = install.claim(places)
        self._last_warning = ""
        self._contest = Contest()
        self.whole = False
        # Seconds for which to leave the files alone, since another program keeps undoing the changes.
        self.rest = 0.0

    def __enter__(self) -> Self:
        self._claim.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._claim.__exit__(kind, error, at)

    def attempt(self) -> bool:
        """Install what is missing or differs; returns whether program and entry are in place now."""
        self.rest = 0.0
        try:
            actions = install.install(self._places, self._source, self._entry())
            if actions:
                for line in install.rivals(self._places.networks):
                    self._log.warn(line)
            for line in actions:
                self._log.info(line)
            self._claim.renew()
            self._last_warning = ""
            self.whole = True
            self.rest = max(map(self._contested, actions), default=0.0)
        except InitError as error:
            # Another program may be writing the network at this moment. Log a lasting error once.
            self.whole = False
            if str(error) != self._last_warning:
                self._last_warning = str(error)
                self._log.warn(f"not installed, will retry: {self._last_warning}")
        return self.whole

    def _contested(self, action: str) -> float:
        """How many seconds to leave alone the file that was just written; warns where that is not 0."""
        path = action.partition(": ")[0]
        times, rest = self._contest.wrote(path, time.monotonic())
        if rest:
            self._log.warn(
                f"{path}: written {times} times in a row, and each time another program undid it: left alone for "
                f"{rest:g} s; end that program, or have both write the same"
            )
        return rest


def watched(places: Directories, plugin_config: str) -> list[str]:
    """The directories whose changes call for another attempt."""
    return [places.networks, places.programs, *([os.path.dirname(plugin_config)] if plugin_config else [])]
