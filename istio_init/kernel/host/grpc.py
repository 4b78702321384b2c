"""gRPC over a unix socket, as far as a container runtime's CRI needs it: one call after the other, one answer each.

HTTP/2 is h2's, which is pure Python; what gRPC puts on top of it is little, and all here:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Its usual library is twenty megabytes of compiled code,
as much as the image, and starts threads, which must not be where a process forks.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

from istio_init.errors import InitError, shown

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

# Whether a message is compressed, and its length.
PREFIX = struct.Struct("!BI")
# No answer of a CRI is longer (its clients' own limit: 16 MiB).
LONGEST = 64 << 20
OK, NOT_FOUND, UNIMPLEMENTED = 0, 5, 12
CHUNK = 64 << 10


class GrpcError(InitError):
    """A call failed; `status` is gRPC's code, or -1 where the answer never came or could not be understood."""

    def __init__(self, message: str, status: int = -1) -> None:
        super().__init__(message)
        self.status = status


class GrpcChannel:
    """A connection to the gRPC server that listens at a path, from `with` to its end.

    `patience` is how many seconds one call may take. GrpcError if nothing listens there.
    """

    def __init__(self, path: str, patience: float = 10.0) -> None:
        self.path, self.patience = path, patience

    def __enter__(self) -> Self:
        try:
            from h2.config import H2Configuration
            from h2.connection import H2Connection
        except ImportError as error:
            raise GrpcError(f"asking the runtime needs the package h2: pip install 'h2>=4.1' ({error})") from error
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(self.patience)
        try:
            self._socket.connect(self.path)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise GrpcError(
                f"{shown(self.path, 256)}: no runtime answers there: {getattr(error, 'strerror', '') or error}"
            ) from error
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http.initiate_connection()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def call(self, method: str, message: bytes) -> bytes:
        """What the server answers to a method, `/package.Service/Method`; GrpcError where it refuses or fails."""
        from h2.exceptions import H2Error

        exchange = _Exchange(method)
        end = time.monotonic() + self.patience
        try:
            number = self._http.get_next_available_stream_id()
            self._http.send_headers(number, _headers(method))
            self._http.send_data(number, PREFIX.pack(0, len(message)) + message, end_stream=True)
            while not exchange.ended:
                self._socket.sendall(self._http.data_to_send())
                self._socket.settimeout(max(0.001, end - time.monotonic()))
                data = self._socket.recv(CHUNK)
                if not data:
                    raise exchange.error("it has hung up")
                for event in self._http.receive_data(data):
                    self._take(event, exchange, number)
        except TimeoutError:
            raise exchange.error(f"no answer in {self.patience:g} seconds") from None
        except (OSError, H2Error) as error:
            raise exchange.error(f"{type(error).__name__}: {error}") from error
        return exchange.message()

    def _take(self, event: Any, exchange: _Exchange, number: int) -> None:  # noqa: ANN401 (any of h2's events)
        from h2 import events

        match event:
            case events.DataReceived():
                self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or number)
                if event.stream_id == number:
                    exchange.add(event.data or b"")
            case events.ResponseReceived() | events.TrailersReceived() if event.stream_id == number:
                exchange.headers |= {str(name): str(value) for name, value in event.headers or ()}
            case events.StreamEnded() if event.stream_id == number:
                exchange.ended = True
            case events.StreamReset() if event.stream_id == number:
                raise exchange.error(f"it has broken off, code {event.error_code}")
            case events.ConnectionTerminated():
                raise exchange.error(f"it has ended the connection, code {event.error_code}")


class _Exchange:
    """One call: what has come of its answer so far."""

    def __init__(self, method: str) -> None:
        self._name = method.rpartition("/")[2]
        self._data = bytearray()
        self.headers: dict[str, str] = {}
        self.ended = False

    def add(self, data: bytes) -> None:
        """More of the answer."""
        self._data += data
        if len(self._data) > LONGEST:
            raise self.error(f"its answer is longer than {LONGEST} bytes")

    def message(self) -> bytes:
        """The whole answer."""
        status = self.headers.get("grpc-status", "")
        if status != str(OK):
            message = unquote(self.headers.get("grpc-message", "")) or f"HTTP {self.headers.get(':status', '?')}"
            raise self.error(shown(message, 400)[1:-1], int(status) if status.isdigit() else -1)
        if len(self._data) < PREFIX.size:
            raise self.error("its answer has no message")
        compressed, length = PREFIX.unpack_from(self._data)
        if compressed or length != len(self._data) - PREFIX.size:
            raise self.error("its answer is no single message")
        return bytes(self._data[PREFIX.size :])

    def error(self, why: str, status: int = -1) -> GrpcError:
        """What the call failed of."""
        return GrpcError(f"the runtime's {self._name}: {why}", status)


def _headers(method: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "istio-init"),
    ]
