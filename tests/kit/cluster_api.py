"""A Kubernetes API server that behaves, in a thread of its own: pods that are listed, watched, evicted, and patched.

For processes under test; what a server does wrong is tests/kit/lying_api.py's.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit.kubernetes_api import write_kubeconfig
from tests.kit.lying_api import Answer, LyingApi, Request, pod_list

Object = dict[str, Any]
KEPT = 1000


class ClusterApi:
    """The server's state. Methods may be called from any thread; each change is seen by all watches."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = str(kubeconfig)
        self.pods: dict[tuple[str, str], Object] = {}
        self.node: Object = {"metadata": {"name": "node-1", "resourceVersion": "1"}, "spec": {"taints": []}}
        self.events: list[Object] = []
        self.requests: list[Request] = []
        # The agent's own DaemonSet; None once it is gone.
        self.daemonset: Object | None = {"metadata": {"name": "istio-init-cni"}}
        # How the server answers evictions (201: the pod goes), and whether it answers at all.
        self.eviction, self.down = 201, False
        # Pods that exist, and that no list and no watch tells of yet.
        self.hidden: set[str] = set()
        # The latest changes; who wants older ones has to list the pods again, as with a real server.
        self._version, self._log = 1000, deque[tuple[int, str, Object]](maxlen=KEPT)
        self._forgotten = 0
        # Of the watches that run now; those of other epochs end, and their versions are too old.
        self._epoch = 0
        self._condition = asyncio.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, pod: Object) -> None:
        """Create or change a pod."""
        self._do(self._put, pod)

    def delete(self, name: str, namespace: str = "default") -> None:
        """Remove a pod."""
        self._do(self._remove, (namespace, name))

    def break_watches(self) -> None:
        """End all watches with 410: who has one has to list the pods again."""
        self._do(self._break, None)

    def requests_of(self, method: str, part: str) -> list[Request]:
        """The requests of a method whose path contains a part."""
        return [each for each in self.requests if each.method == method and part in each.path]

    def _do(self, change: Any, argument: Any) -> None:  # noqa: ANN401
        async def done() -> None:
            async with self._condition:
                change(argument)
                self._condition.notify_all()

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(done(), self._loop).result(30)

    def _put(self, pod: Object) -> None:
        self._version += 1
        pod = copy.deepcopy(pod)
        pod["metadata"]["resourceVersion"] = str(self._version)
        key = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self._note("MODIFIED" if key in self.pods else "ADDED", pod)
        self.pods[key] = pod

    def _break(self, _: None) -> None:
        self._epoch += 1

    def _remove(self, key: tuple[str, str]) -> None:
        self._version += 1
        pod = copy.deepcopy(self.pods.pop(key))
        pod["metadata"]["resourceVersion"] = str(self._version)
        self._note("DELETED", pod)

    def _note(self, kind: str, pod: Object) -> None:
        if len(self._log) == KEPT:
            self._forgotten = self._log[0][0]
        self._log.append((self._version, kind, pod))

    async def answer(self, request: Request, answer: Answer) -> None:
        """Answer one request."""
        self.requests.append(request)
        if self.down:
            await answer.refuse(503, "the server is down")
        elif request.watches:
            await self._watch(int(request.query["resourceVersion"]), answer)
        elif request.path == "/api/v1/pods":
            await answer.json(pod_list(self._version, *filter(self._is_seen, self.pods.values())))
        else:
            await self._one(request, request.path.strip("/").split("/"), answer)

    def _is_seen(self, pod: Object) -> bool:
        return pod["metadata"]["name"] not in self.hidden

    async def _watch(self, version: int, answer: Answer) -> None:
        await answer.begin()
        epoch = self._epoch
        while True:
            async with self._condition:
                news = [each for each in self._log if each[0] > version]
                if not news and epoch == self._epoch:
                    await self._condition.wait()
            if epoch != self._epoch or version < self._forgotten:
                await answer.event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
                await answer.end()
                return
            for number, kind, pod in news:
                version = number
                if self._is_seen(pod):
                    await answer.event(kind, pod)

    async def _one(self, request: Request, path: list[str], answer: Answer) -> None:
        body = json.loads(request.body or b"{}")
        match request.method, path:
            case "GET", ["api", "v1", "namespaces", namespace, "pods", name]:
                result = self.pods.get((namespace, name))
                await (answer.json(result) if result else answer.refuse(404, f'pods "{name}" not found'))
            case "PATCH", ["api", "v1", "namespaces", namespace, "pods", name]:
                async with self._condition:
                    pod = copy.deepcopy(self.pods[namespace, name])
                    pod["metadata"].setdefault("labels", {}).update(body["metadata"]["labels"])
                    self._put(pod)
                    self._condition.notify_all()
                await answer.json(pod)
            case "POST", ["api", "v1", "namespaces", namespace, "pods", name, "eviction"]:
                await self._evict((namespace, name), answer)
            case "POST", ["api", "v1", "namespaces", _, "events"]:
                self.events.append(body)
                await answer.json(body, 201)
            case "GET", ["apis", "apps", "v1", "namespaces", "kube-system", "daemonsets", "istio-init-cni"] if (
                self.daemonset is not None
            ):
                await answer.json(self.daemonset)
            case "GET", ["api", "v1", "nodes", "node-1"]:
                await answer.json(self.node)
            case "PATCH", ["api", "v1", "nodes", "node-1"] if (
                body["metadata"]["resourceVersion"] != self.node["metadata"]["resourceVersion"]
            ):
                await answer.refuse(409, "the object has been modified")
            case "PATCH", ["api", "v1", "nodes", "node-1"]:
                self.node["metadata"].update(body.get("metadata", {}))
                self.node["spec"].update(body.get("spec", {}))
                await answer.json(self.node)
            case _:
                await answer.refuse(404, "no such path")

    async def _evict(self, key: tuple[str, str], answer: Answer) -> None:
        if self.eviction != 201:
            await answer.refuse(self.eviction, "Cannot evict pod as it would violate the pod's disruption budget.")
            return
        async with self._condition:
            self._remove(key)
            self._condition.notify_all()
        await answer.json({"kind": "Status", "status": "Success"}, 201)

    async def _serve(self, running: threading.Event, over: asyncio.Event) -> None:
        async with LyingApi(self.answer).serving() as server:
            write_kubeconfig(Path(self.kubeconfig), server.url)
            running.set()
            await over.wait()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The server while it runs."""
        running, over = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # clients go when they want
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(running, over),))
        thread.start()
        assert running.wait(30)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(over.set)
            thread.join()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()


@contextmanager
def cluster_api(directory: Path) -> Iterator[ClusterApi]:
    """A server with a kubeconfig in a directory."""
    api = ClusterApi(directory / "kubeconfig")
    with api.serving():
        yield api
