"""A Kubernetes API server for the agent's tests, which may be slow, refuse, cut its answers off, or answer nonsense.

It writes HTTP by hand and runs in the event loop of the test, so a test sees every request and decides what comes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Request:
    """A request, and the connection to answer it on."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        url = urlsplit(target)
        self.method, self.path, self.headers, self.body = method, url.path, headers, body
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}

    @property
    def watches(self) -> bool:
        """Whether it asks for a watch."""
        return self.query.get("watch") == "true"


class Answer:
    """What a handler writes its answer to."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def json(self, value: object, status: int = 200, headers: str = "") -> None:
        """A whole answer."""
        data = json.dumps(value).encode()
        await self.raw(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data)

    async def refuse(self, status: int, message: str = "no", headers: str = "") -> None:
        """A refusal as Kubernetes has it."""
        await self.json({"kind": "Status", "code": status, "message": message}, status, headers)

    async def begin(self) -> None:
        """The header of a stream of events."""
        await self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def event(self, kind: str, result: object) -> None:
        """One event of a watch."""
        await self.piece(json.dumps({"type": kind, "object": result}).encode() + b"\n")

    async def piece(self, data: bytes) -> None:
        """A chunk of the stream."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        """The proper end of a stream."""
        await self.raw(b"0\r\n\r\n")


Handler = Callable[[Request, Answer], Awaitable[None]]


class LyingApi:
    """The server: `requests` are those that came; `handlers` answer them, one each, the last one all others."""

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.requests: list[Request] = []
        self.url = ""
        self._connections: dict[asyncio.Task[object], asyncio.StreamWriter] = {}

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[LyingApi]:
        """The server while it runs; `url` is where."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        try:
            yield self
        finally:
            # What has just been accepted gets its transport and its handler some turns of the loop later, and what is
            # aborted ends so. A server that is closed already takes no transport, and leaves it to the collector.
            for each in server.sockets:
                asyncio.get_running_loop().remove_reader(each.fileno())
            await _turns()
            server.close()
            for task, writer in tuple(self._connections.items()):
                writer.transport.abort()
                task.cancel()
            await _turns()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)
        try:
            request = await _read(reader)
            self.requests.append(request)
            handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
            await handler(request, Answer(writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test ends
        finally:
            writer.close()


async def _turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:]) if name}
    return Request(method, target, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def pod(name: str, version: int, **spec: Any) -> dict[str, Any]:  # noqa: ANN401 (JSON)
    """A pod with a sidecar as the API writes it."""
    annotations = {"sidecar.istio.io/status": "{}", "example.com/long": "x" * 500, **spec.pop("annotations", {})}
    metadata = {
        "name": name,
        "namespace": spec.pop("namespace", "default"),
        "uid": spec.pop("uid", f"uid-{name}"),
        "resourceVersion": str(version),
        "annotations": annotations,
        "labels": spec.pop("labels", {}),
    }
    status = spec.pop("status", {"phase": "Running"})
    spec.setdefault("containers", [{"name": "app"}, {"name": "istio-proxy"}])
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status}


def pod_list(version: int, *pods: dict[str, Any]) -> dict[str, Any]:
    """A list as the API writes it; its items have no kind."""
    items = [{key: value for key, value in each.items() if key not in {"kind", "apiVersion"}} for each in pods]
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": items}
