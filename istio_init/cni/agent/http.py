"""HTTP/1.1 requests over asyncio. h11 implements the protocol; this module transfers the bytes.

One connection a request: the agent makes few, and one of them, the watch, lasts for minutes.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import h11

from istio_init.errors import InitError, shown
from istio_init.kernel.host.sockets import keep_alive

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping

CHUNK = 64 << 10
# Bytes of a header that is read, and of the body of a refusal, of which a line is shown.
LONGEST_HEAD, LONGEST_REFUSAL = 64 << 10, 16 << 10


class HttpError(InitError):
    """A request failed. `status` is the answer's, 0 without one; `retry_after` is in seconds, 0 if not given."""

    def __init__(self, message: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Response:
    """An answer whose status and header have come, and whose body comes piece by piece."""

    def __init__(self, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> None:
        self.status, self.headers, self._pieces = status, headers, pieces

    async def body(self, longest: int) -> bytes:
        """The whole body; HttpError where it has more than `longest` bytes, or ends too early."""
        data = bytearray()
        async for piece in self._pieces:
            data += piece
            if len(data) > longest:
                raise HttpError(f"the answer is longer than {longest} bytes", self.status)
        return bytes(data)

    async def lines(self, longest: int) -> AsyncIterator[bytes]:
        """The lines of a body as they come; HttpError for one that has more than `longest` bytes, or is cut off."""
        rest = bytearray()
        async for piece in self._pieces:
            searched = len(rest)
            rest += piece
            while (end := rest.find(b"\n", searched)) >= 0:
                line = bytes(rest[:end])
                del rest[: end + 1]
                searched = 0
                if line:
                    yield line
            if len(rest) > longest:
                raise HttpError(f"a line of the answer is longer than {longest} bytes", self.status)
        if rest:
            raise HttpError("the answer ends in the middle of a line", self.status)


class ServerAddress:
    """Where a server listens. `tls` is None for plain HTTP, which is for tests and local proxies."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.host, self.port, self.tls = host, port, tls

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@asynccontextmanager
async def request(  # noqa: PLR0913 (what a request consists of)
    address: ServerAddress, method: str, target: str, headers: Mapping[str, str], body: bytes = b"", *, patience: float
) -> AsyncIterator[Response]:
    """The answer to one request, for the length of an `async with`.

    `patience` is how many seconds may pass until the answer's header is there, and then between two pieces of its
    body. HttpError where the server cannot be reached, is silent for longer, or does not speak HTTP.
    """
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls, limit=CHUNK)
    except TimeoutError:
        raise HttpError(f"{address}: no connection within {patience:g} s") from None
    except OSError as error:
        raise HttpError(f"{address}: {_why(error)}") from error
    try:
        keep_alive(writer.get_extra_info("socket"))
        yield await _exchange(_Connection(address, reader, writer, patience), method, target, headers, body)
    finally:
        # Not wait_closed(): a TLS peer that has vanished would be waited for.
        writer.transport.abort()


async def _exchange(
    connection: _Connection, method: str, target: str, headers: Mapping[str, str], body: bytes
) -> Response:
    always = {"Host": str(connection.address), "Connection": "close", "Content-Length": str(len(body))}
    lines = list({**always, **headers}.items())
    await connection.send(h11.Request(method=method, target=target, headers=lines), h11.Data(data=body))
    event = await connection.event()
    while isinstance(event, h11.InformationalResponse):
        event = await connection.event()
    if not isinstance(event, h11.Response):
        raise HttpError(f"{connection.address}: closed the connection without an answer")
    received = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    return Response(event.status_code, received, connection.pieces())


class _Connection:
    """One connection, and h11's state of it."""

    def __init__(
        self, address: ServerAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float
    ) -> None:
        self.address, self._reader, self._writer, self._patience = address, reader, writer, patience
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)

    async def send(self, head: h11.Request, body: h11.Data) -> None:
        try:
            for event in (head, body, h11.EndOfMessage()):
                self._writer.write(self._state.send(event) or b"")
            async with asyncio.timeout(self._patience):
                await self._writer.drain()
        except h11.LocalProtocolError as error:
            raise HttpError(f"{self.address}: the request cannot be sent: {error}") from error
        except (OSError, TimeoutError) as error:
            raise HttpError(f"{self.address}: {_why(error)}") from error

    async def event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        """The next event that the server sends; never NEED_DATA."""
        try:
            while (event := self._state.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._patience):
                    data = await self._reader.read(CHUNK)
                self._state.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise HttpError(f"{self.address}: {shown(str(error), 200)[1:-1]}") from error
        except TimeoutError:
            raise HttpError(f"{self.address}: silent for {self._patience:g} s") from None
        except OSError as error:
            raise HttpError(f"{self.address}: {_why(error)}") from error
        return event

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body; HttpError where it ends before it should."""
        while not isinstance(event := await self.event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise HttpError(f"{self.address}: closed the connection in the middle of an answer")
            yield bytes(event.data)


def _why(error: Exception) -> str:
    """An error of the network or of TLS in one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(text.split()), 200)[1:-1]
