"""Lists and watches this node's pods while the agent runs, through failures of the API server."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import TYPE_CHECKING, Never

from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.kubernetes import BAD_REQUEST, OK
from istio_init.cni.agent.objects import GONE
from istio_init.errors import InitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.cni.agent.kubernetes import KubernetesApi
    from istio_init.cni.agent.pods import PodStore
    from istio_init.log import Log

# Seconds after which the server is to end a watch: at random between these, so that nodes do not all come at once.
SHORTEST, LONGEST = 300, 600
# A watch that ends sooner than this many seconds, without an event, was refused.
TOO_SHORT = 1.0
# After these a watch cannot go on: an event that is too long, a version that is none, or is too old.
STUCK = frozenset({OK, BAD_REQUEST, GONE})
CHANGES = frozenset({"ADDED", "MODIFIED", "DELETED"})


class Backoff:
    """How long to wait after a failure: twice as long after each, up to a limit, and at random between half and whole.

    Times are in seconds.
    """

    def __init__(self, first: float = 0.5, limit: float = 30.0) -> None:
        self._first, self._limit = first, limit
        self._next = first

    def reset(self) -> None:
        """Reset the delay after a success."""
        self._next = self._first

    def pause(self, least: float = 0.0) -> float:
        """The time to wait now: at least what the server has asked for, up to the limit."""
        now, self._next = self._next, min(self._next * 2, self._limit)
        return max(now * random.uniform(0.5, 1.0), min(least, self._limit) * random.uniform(1.0, 1.2))  # noqa: S311


class PodWatch:
    """Keeps a PodStore up to date with the API server.

    `synced` is set once the first list is in. `failed` is called with the reason for each failure, `listed` after
    each list.
    """

    def __init__(
        self, api: KubernetesApi, node: str, store: PodStore, log: Log, backoff: Backoff | None = None
    ) -> None:
        self._api, self._node, self._store, self._log = api, node, store, log
        self._backoff = backoff or Backoff()
        self._failure = ""
        # A server's cache may be old; after a 410 or a failed list the newest state is asked for.
        self._from = "0"
        self.synced = asyncio.Event()
        self.connected = False
        self.listed: Callable[[], None] = lambda: None
        self.failed: Callable[[int], None] = lambda _status: None

    async def run(self) -> Never:
        """List and watch until the task is cancelled."""
        while True:
            try:
                if not self._store.version:
                    await self._list()
                await self._watch()
                self._backoff.reset()
            except InitError as error:
                await self._recover(error)

    async def _list(self) -> None:
        pods, version = await self._api.pods(self._node, self._from)
        self._store.replace(pods, version)
        self.synced.set()
        self.listed()
        self._recovered()

    async def _watch(self) -> None:
        """One watch, until the server ends it."""
        seconds = random.randint(SHORTEST, LONGEST)  # noqa: S311 (spreads load)
        begin, events = asyncio.get_running_loop().time(), 0
        async with aclosing(self._api.watch(self._node, self._store.version, seconds)) as changes:
            async for kind, content in changes:
                events += 1
                self._recovered()
                if kind in CHANGES:
                    self._store.apply(kind, content)
                elif kind == "BOOKMARK":
                    self._store.version = content
        if not events and asyncio.get_running_loop().time() - begin < TOO_SHORT:
            # A server that ends each watch at once must not be asked in a loop.
            raise HttpError("the watch ended at once")

    async def _recover(self, error: InitError) -> None:
        """Log a failure once, and wait before the next attempt."""
        status = getattr(error, "status", 0)
        self.connected = False
        self.failed(status)
        if status in STUCK:
            self._store.version, self._from = "", ""
        elif not self._store.version:
            self._from = ""
        if str(error) != self._failure:
            self._failure = str(error)
            self._log.warn(f"the Kubernetes API: {error}; trying again")
        await asyncio.sleep(self._backoff.pause(getattr(error, "retry_after", 0.0)))

    def _recovered(self) -> None:
        self._backoff.reset()
        if self._failure:
            self._log.info("the Kubernetes API answers again")
            self._failure = ""
        self.connected = True
