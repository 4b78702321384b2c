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
from istio_init.cni.agent.pods import NodePod, from_object
from istio_init.errors import shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from istio_init.cni.agent.credentials import ApiCredentials

# Bytes. etcd takes objects of 1.5 MiB; a node has 110 pods, some 500, and a list of all is one answer.
LONGEST_OBJECT, LONGEST_LIST = 4 << 20, 256 << 20
# Seconds for one request; a watch is silent for longer, and the server ends it by itself.
PATIENCE = 5.0
MERGE_PATCH = "application/merge-patch+json"
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, TOO_MANY = 401, 403, 404, 409, 410, 429


class KubernetesApi:
    """The API server, as the agent uses it. Each call raises HttpError where it fails, or InitError without a token."""

    def __init__(self, credentials: ApiCredentials, patience: float = PATIENCE) -> None:
        self._credentials, self._patience = credentials, patience

    async def pod(self, namespace: str, name: str) -> NodePod | None:
        """One pod, or None where there is none of this name."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
        try:
            async with self._request("GET", path) as answer:
                return _pod(await answer.body(LONGEST_OBJECT))
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
            return _pod_list(await answer.body(LONGEST_LIST))

    async def watch(self, node: str, version: str, seconds: int) -> AsyncGenerator[tuple[str, Any]]:
        """What happens to a node's pods from a resource version on: the type of each event, and its object.

        The object is a NodePod for ADDED, MODIFIED and DELETED, the new resource version for BOOKMARK. Ends when the
        server ends it, after about `seconds`; HttpError where it breaks off, with status 410 where the version is too
        old, or leads to something that is no event.
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
                yield _event(line)

    async def patch(self, path: str, change: Mapping[str, Any]) -> Any:  # noqa: ANN401 (JSON)
        """The object at a path as it is after a merge patch."""
        return await self._send("PATCH", path, change, MERGE_PATCH)

    async def create(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 (JSON)
        """What a POST answers: the object that was created."""
        return await self._send("POST", path, body, "application/json")

    async def get(self, path: str) -> Any:  # noqa: ANN401 (JSON)
        """The object at a path."""
        async with self._request("GET", path) as answer:
            return _json(await answer.body(LONGEST_OBJECT))

    async def _send(self, method: str, path: str, body: Mapping[str, Any], kind: str) -> Any:  # noqa: ANN401 (JSON)
        async with self._request(method, path, {}, json.dumps(body).encode(), kind) as answer:
            return _json(await answer.body(LONGEST_OBJECT))

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


def _json(data: bytes) -> Any:  # noqa: ANN401
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HttpError(f"the answer is no JSON: {shown(str(error))[1:-1]}") from error


def _pod(data: bytes) -> NodePod:
    try:
        return from_object(_json(data))
    except ValueError as error:
        raise HttpError(f"the answer is no pod: {error}") from error


def _reduced(value: dict[str, Any]) -> Any:  # noqa: ANN401
    """Convert each pod while JSON is parsed, so that a long list never exists as dicts."""
    if "spec" in value and "metadata" in value:
        return from_object(value)
    return value


def _pod_list(data: bytes) -> tuple[list[NodePod], str]:
    try:
        document = json.loads(data, object_hook=_reduced)
        version = document["metadata"]["resourceVersion"]
        listed = [each for each in document["items"] or () if isinstance(each, NodePod)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HttpError(f"the answer is no list of pods: {shown(str(error))[1:-1]}") from error
    if not isinstance(version, str) or len(listed) != len(document["items"] or ()):
        raise HttpError("the answer is no list of pods: an item or the resource version is missing")
    return listed, version


def _event(line: bytes) -> tuple[str, Any]:
    try:
        event = json.loads(line)
        kind, content = event["type"], event["object"]
        if kind == "BOOKMARK":
            return kind, str(content["metadata"]["resourceVersion"])
        if kind != "ERROR":
            return kind, from_object(content)
        why, code = shown(str(content.get("message")), 200), int(content.get("code") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HttpError(f"the watch: no event: {shown(str(error))[1:-1]}", GONE) from error
    raise HttpError(f"the watch: {why}", code)
