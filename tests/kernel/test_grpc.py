"""Our gRPC client against a server of gRPC's own library, and against what is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from istio_init.kernel.host.grpc import NOT_FOUND, UNIMPLEMENTED, GrpcChannel, GrpcError

SERVICE = "/test.Service/"


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A method for each way to answer."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def service(self, handler_call_details: Any) -> Any:  # noqa: ANN401 (grpc has no types)
        """The handler of a method."""
        method = getattr(self, handler_call_details.method.rpartition("/")[2].lower(), None)
        return grpc.unary_unary_rpc_method_handler(method) if method else None

    def echo(self, message: bytes, context: Any) -> bytes:  # noqa: ANN401
        """What it is asked."""
        return message

    def many(self, message: bytes, context: Any) -> bytes:  # noqa: ANN401
        """As many bytes as it is asked for."""
        return b"m" * int(message)

    def gone(self, message: bytes, context: Any) -> bytes:  # noqa: ANN401
        """An error with a hostile text."""
        context.abort(grpc.StatusCode.NOT_FOUND, "no 'such' sandbox 100%\n\x1b[1m")
        raise AssertionError

    def late(self, message: bytes, context: Any) -> bytes:  # noqa: ANN401
        """Nothing, for long."""
        self.release.wait(20)
        return b""

    def broken(self, message: bytes, context: Any) -> bytes:  # noqa: ANN401
        """A fault."""
        raise RuntimeError("a fault of the server's")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("grpc") / "sock"
    handlers = Handlers()
    with ThreadPoolExecutor(2) as workers:
        result = grpc.server(workers, handlers=[handlers], options=[("grpc.max_send_message_length", -1)])
        result.add_insecure_port(f"unix://{path}")
        result.start()
        yield str(path)
        handlers.release.set()
        result.stop(None).wait()


def test_one_call_after_the_other(server: str) -> None:
    with GrpcChannel(server) as channel:
        for size in (0, 1, 100, 16_384, 60_000):
            assert channel.call(f"{SERVICE}Echo", b"e" * size) == b"e" * size
        # More than the windows of stream and connection, over and over.
        for size in (65_535, 1 << 20, 5_000_000):
            assert channel.call(f"{SERVICE}Many", str(size).encode()) == b"m" * size


def test_failures_are_told_and_the_connection_is_as_good_as_before(server: str) -> None:
    with GrpcChannel(server) as channel:
        for method, status, why in (
            ("Gone", NOT_FOUND, r"^the runtime's Gone: no 'such' sandbox 100%\\n\\x1b\[1m$"),
            ("Nothing", UNIMPLEMENTED, "Nothing: .*not found"),
            ("Broken", 2, "Broken: .*a fault of the server's"),
        ):
            with pytest.raises(GrpcError, match=why) as raised:
                channel.call(f"{SERVICE}{method}", b"")
            assert raised.value.status == status
            assert channel.call(f"{SERVICE}Echo", b"still") == b"still"


def test_patience_ends(server: str) -> None:
    with (
        GrpcChannel(server, patience=0.1) as channel,
        pytest.raises(GrpcError, match=r"Late: no answer in 0.1 seconds"),
    ):
        channel.call(f"{SERVICE}Late", b"")


def test_nobody_listens(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), ("\0", "null|Connection refused"), ("a" * 200, "too long")):
        with pytest.raises(GrpcError, match=why), GrpcChannel(str(path)):
            pass


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"\0\0\4\4\0\0\0\0\0"])
def test_who_answers_is_no_runtime(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(GrpcError, match=r"^the runtime's Echo: "), GrpcChannel(str(path)) as channel:
            channel.call(f"{SERVICE}Echo", b"")
        thread.join()
