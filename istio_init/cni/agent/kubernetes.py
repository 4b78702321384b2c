"""The few calls of the Kubernetes API that the agent makes, each one request.

https://kubernetes.io/docs/reference/using-api/api-concepts/ describes lists, watches, bookmarks and what 410 means.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from istio_init import __version__
from istio_init.cni.agent import http
from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.objects import parse, parse_event, parse_list, parse_pod
from istio_init.errors import shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from istio_init.cni.agent.credentials import ApiCredentials
    from istio_init.cni.agent.pods import NodePod

# Bytes. etcd takes objects of 1.5 MiB, of which each byte may be six as JSON (Go writes < as \u003c); a node has 110
# pods, some 500, and a list of all is one answer.
LONGEST_OBJECT, LONGEST_LIST = 16 << 20, 256 << 20
# Seconds for one request; a watch is silent for longer, and the server ends it by itself.
PATIENCE = 5.0
MERGE_PATCH = "application/merge-patch+json"
OK, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, TOO_MANY = 200, 400, 401, 403, 404, 409, 429


class KubernetesApi:
    """The API server, as the agent uses it. Each call raises HttpError where it fails, or InitError without a token."""

    def __init__(self, credentials: ApiCredentials, patience: float = PATIENCE) -> None:
        self._credentials, self._patience = credentials, patience

    async def pod(self, namespace: str, name: str) -> NodePod | None:
        """One pod, or None where there is none of this name."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
        try:
            async with self._request("GET", path) as answer:
                return parse_pod(await answer.body(LONGEST_OBJECT))
        except HttpError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def pods(self, node: str, version: str) -> tuple[list[NodePod], str]:
        """A node's pods, and the resource version of the list, from which a watch goes on.

        `version` "0" is whatever the server has at hand, which spares etcd a scan of all pods; empty is the newest.
        """
        query = {"fieldSelector": f"spec.nodeName={node}", **({"resourceVersion": version} if version else {})}
        # A long list of a busy server takes longer than another request.
        async with self._request("GET", "/api/v1/pods", query, patience=self._patience * 4) as answer:
            return parse_list(await answer.body(LONGEST_LIST))

    async def watch(self, node: str, version: str, seconds: int) -> AsyncGenerator[tuple[str, Any]]:
        """What happens to a node's pods from a resource version on: the type of each event, and its object.

        The object is a NodePod for ADDED, MODIFIED and DELETED, the new resource version for BOOKMARK. Ends when the
        server ends it, after about `seconds`; HttpError where it breaks off, with status 410 where the version is too
        old, or leads to something that is no event, and 200 where an event is too long.
        """
        query = {
            "fieldSelector": f"spec.nodeName={node}",
            "resourceVersion": version,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        async with self._request("GET", "/api/v1/pods", query, patience=seconds + self._patience) as answer:
            async for line in answer.lines(LONGEST_OBJECT):
                yield parse_event(line)

    async def patch(self, path: str, change: Mapping[str, Any]) -> Any:  # noqa: ANN401 (JSON)
        """The object at a path as it is after a merge patch."""
        return await self._send("PATCH", path, change, MERGE_PATCH)

    async def create(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 (JSON)
        """What a POST answers: the object that was created."""
        return await self._send("POST", path, body, "application/json")

    async def get(self, path: str) -> Any:  # noqa: ANN401 (JSON)
        """The object at a path."""
        async with self._request("GET", path) as answer:
            return parse(await answer.body(LONGEST_OBJECT))

    async def _send(self, method: str, path: str, body: Mapping[str, Any], kind: str) -> Any:  # noqa: ANN401 (JSON)
        async with self._request(method, path, {}, json.dumps(body).encode(), kind) as answer:
            return parse(await answer.body(LONGEST_OBJECT))

    @asynccontextmanager
    async def _request(  # noqa: PLR0913, PLR0917 (what a request consists of)
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        kind: str = "",
        patience: float = 0.0,
    ) -> AsyncIterator[http.Response]:
        """An answer with a status below 300; HttpError with the server's message for any other."""
        credentials = self._credentials
        target = f"{credentials.prefix}{path}{f'?{urlencode(query)}' if query else ''}"
        headers = {"Accept": "application/json", "User-Agent": f"istio-init-cni/{__version__}", **credentials.headers()}
        if kind:
            headers["Content-Type"] = kind
        opened = http.request(credentials.address(), method, target, headers, body, patience=patience or self._patience)
        async with opened as answer:
            if answer.status >= 300:
                raise await _refusal(method, path, answer)
            yield answer


async def _refusal(method: str, path: str, answer: http.Response) -> HttpError:
    """The error in an answer: a Status object of Kubernetes, or a proxy's page."""
    try:
        data = await answer.body(http.LONGEST_REFUSAL)
        why = str(json.loads(data)["message"])
    except (HttpError, ValueError, KeyError, TypeError, RecursionError):
        why = ""
    after = answer.headers.get("retry-after", "")
    detail = f": {shown(' '.join(why.split()), 200)[1:-1]}" if why else ""
    # Seconds; a date is ignored.
    seconds = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else 0.0
    return HttpError(f"{method} {path}: {answer.status}{detail}", answer.status, seconds)
