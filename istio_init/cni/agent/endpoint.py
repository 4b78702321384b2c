"""The HTTP endpoint for a kubelet's probes and for Prometheus: a few paths, GET only, h11's protocol."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import h11

from istio_init.errors import InitError, shown
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

# Seconds for one request, bytes of its header, and how many connections may be open at once: the port is open to the
# network. One more closes the oldest, so that a probe, which sends its request at once, is answered among idle ones.
PATIENCE, LONGEST_HEAD, MOST = 5.0, 16 << 10, 64
CHUNK = 16 << 10


class Page(Record):
    """What a path answers."""

    status: int
    text: str
    kind: str = "text/plain; charset=utf-8"


class HttpEndpoint:
    """Serves pages by their paths at ADDRESS:PORT, for the length of an `async with`."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._pages = pages
        # Open connections, the oldest first.
        self._open: dict[asyncio.StreamWriter, None] = {}

    @asynccontextmanager
    async def serving(self, address: str) -> AsyncIterator[int]:
        """The port, while requests are answered. InitError where the address cannot be listened on."""
        host, _, port = address.rpartition(":")
        if not port.isdigit() or int(port) > 65535:
            raise InitError(f"--listen: {shown(address)}: use ADDRESS:PORT, or :PORT for all addresses")
        try:
            server = await asyncio.start_server(self._serve, host.strip("[]") or None, int(port))
        except OSError as error:
            why = error.strerror or str(error)
            raise InitError(f"--listen: {shown(address)}: {why}; name another port, or end what uses it") from error
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) == MOST:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(PATIENCE):
                await self._answer(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client has gone, is silent, or speaks something else
        finally:
            self._open.pop(writer, None)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; the connection ends with it."""
        state = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        event: Any = h11.NEED_DATA
        while event is h11.NEED_DATA:
            state.receive_data(await reader.read(CHUNK))
            event = state.next_event()
        if not isinstance(event, h11.Request):
            return
        page = self._page(event)
        body = page.text.encode()
        headers = [("Content-Type", page.kind), ("Content-Length", str(len(body))), ("Connection", "close")]
        for each in (h11.Response(status_code=page.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            if event.method != b"HEAD" or not isinstance(each, h11.Data):
                writer.write(state.send(each) or b"")
        await writer.drain()

    def _page(self, request: h11.Request) -> Page:
        path = request.target.partition(b"?")[0].decode("latin-1")
        if request.method not in {b"GET", b"HEAD"}:
            return Page(405, "only GET and HEAD\n")
        if path not in self._pages:
            return Page(404, f"no such page; there are {', '.join(self._pages)}\n")
        return self._pages[path]()
