"""Removing the taint that keeps pods off a node until the plugin works there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Never
from urllib.parse import quote

from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.kubernetes import CONFLICT
from istio_init.errors import InitError

if TYPE_CHECKING:
    from istio_init.cni.agent.health import Health
    from istio_init.cni.agent.kubernetes import KubernetesApi
    from istio_init.log import Log

# Istio's own name for it (pilot: PILOT_ENABLE_NODE_UNTAINT_CONTROLLERS).
TAINT = "cni.istio.io/not-ready"
# Seconds between two checks of the agent's health, after a failure, and until the node is checked again: a node
# that was registered anew has its taint again.
LOOK, AFTER_FAILURE, AGAIN = 1.0, 10.0, 300.0


class Untaint:
    """Removes a taint from this node while the agent is ready."""

    def __init__(self, key: str, node: str, api: KubernetesApi, health: Health, log: Log) -> None:
        self._key, self._api, self._health, self._log = key, api, health, log
        self._path = f"/api/v1/nodes/{quote(node, safe='')}"
        self._failure = ""

    async def run(self) -> Never:
        """Remove the taint whenever the agent is ready, and the node has it."""
        while True:
            if self._health.troubles():
                await asyncio.sleep(LOOK)
                continue
            await asyncio.sleep(await self._tried())

    async def _tried(self) -> float:
        """Remove the taint if it is there; how long to wait then."""
        try:
            if await self.remove():
                self._log.info(f"the taint {self._key} has been removed from the node")
        except InitError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                self._log.warn(f"the taint {self._key} cannot be removed: {error}")
            return LOOK if isinstance(error, HttpError) and error.status == CONFLICT else AFTER_FAILURE
        self._failure = ""
        return AGAIN

    async def remove(self) -> bool:
        """Remove the taint from the node; whether it had it. HttpError, with status 409 if the node has changed."""
        node = await self._api.get(self._path)
        try:
            version, taints = node["metadata"]["resourceVersion"], node["spec"].get("taints") or []
            left = [each for each in taints if each["key"] != self._key]
        except (KeyError, TypeError, AttributeError) as error:
            raise HttpError(f"GET {self._path}: the answer is no node") from error
        if len(left) == len(taints):
            return False
        # The list is replaced as a whole, so the version must be the one that was read.
        await self._api.patch(self._path, {"metadata": {"resourceVersion": version}, "spec": {"taints": left}})
        return True
