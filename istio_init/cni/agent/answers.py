"""The agent's answers to the plugin: a pod from its watch, or from one request of the API server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from istio_init.cni.plugin.agent_client import description_members
from istio_init.cni.plugin.sandbox_state import is_identity
from istio_init.errors import InitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_init.cni.agent.health import Health
    from istio_init.cni.agent.kubernetes import KubernetesApi
    from istio_init.cni.agent.pods import NodePod, PodStore

# Requests of single pods at one time, and seconds for one, waiting included: less than the plugin waits.
AT_ONCE, PATIENCE = 16, 8.0


class Answers:
    """Answers from the agent's store. `count_request` is called for each pod that is requested from the API server."""

    def __init__(self, api: KubernetesApi, store: PodStore, health: Health) -> None:
        self._api, self._store, self._health = api, store, health
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.count_request: Callable[[], None] = lambda: None

    async def pod(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The pod of a request; InitError if it is not available now."""
        namespace, name, uid = (request.get(key) for key in ("namespace", "name", "uid"))
        if not isinstance(namespace, str) or not isinstance(name, str) or not isinstance(uid, str):
            return {"error": "namespace, name and uid have to be texts", "final": True}
        if not is_identity(namespace) or not is_identity(name):
            return {"error": "not a pod's name and namespace", "final": True}
        pod = self._store.get(namespace, name)
        if pod is None or not pod.has_uid(uid):
            pod = await self._directly(namespace, name)
        if pod is None:
            raise InitError("the API server has no such pod")
        if not pod.has_uid(uid):
            raise InitError(f"the API server has another pod of this name, with the uid {pod.uid}")
        if pod.description is None:
            return {"error": pod.why, "final": True}
        return {"pod": description_members(pod.description)}

    async def health(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """What keeps the agent from its work."""
        return {"troubles": self._health.troubles()}

    async def _directly(self, namespace: str, name: str) -> NodePod | None:
        self.count_request()
        try:
            async with asyncio.timeout(PATIENCE), self._slots:
                return await self._api.pod(namespace, name)
        except TimeoutError:
            raise InitError("the API server does not answer in time") from None
