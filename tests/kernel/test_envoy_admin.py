"""Envoy's admin interface, in whose place anything may answer: a whole answer, or one line in bounded time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from istio_init.errors import KernelError
from istio_init.kernel.host import envoy_admin


@contextmanager
def serving(answer: Callable[[socket.socket], None], listener: socket.socket) -> Iterator[None]:
    """One connection is taken and given to `answer`."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            try:
                answer(connection)
            except OSError:
                pass  # the client has seen enough

    with listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def get(answer: Callable[[socket.socket], None]) -> bytes:
    listener = socket.create_server(("127.0.0.1", 0))
    with serving(answer, listener):
        return envoy_admin.get(f"http://127.0.0.1:{listener.getsockname()[1]}", "/config_dump")


def sending(*parts: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(b"".join(parts))


def trickling(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    stopped = threading.Event()
    for _ in range(200):
        connection.sendall(b"1\r\nx\r\n")
        stopped.wait(0.02)


def trickling_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    stopped = threading.Event()
    for _ in range(200):
        connection.sendall(b"x: y\r\n")
        stopped.wait(0.02)


def hanging(connection: socket.socket) -> None:
    # Until the client has gone.
    while connection.recv(4096):
        pass


def test_an_answer() -> None:
    assert get(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) == b"{}"
    assert get(sending(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 200_000)) == b"x" * 200_000


def test_a_unix_socket(tmp_path: Path) -> None:
    for name in (str(tmp_path / "admin"), "@istio-init-test-admin"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        listener.listen()
        with serving(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), listener):
            assert envoy_admin.get(f"unix:{name}", "/config_dump") == b"{}"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (sending(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "answers 404"),
        (sending(b"SSH-2.0-OpenSSH_9.9\r\n"), "no answer in HTTP"),
        (sending(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}"), "no answer in HTTP (IncompleteRead)"),
        (sending(b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 100_000), "no answer in HTTP"),
        (sending(b""), "no answer in HTTP"),
    ],
)
def test_what_is_no_admin_interface(answer: Callable[[socket.socket], None], why: str) -> None:
    with pytest.raises(KernelError) as caught:
        get(answer)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_hangs_or_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_admin, "PATIENCE", 0.3)
    for answer in (trickling, hanging, trickling_headers):
        with pytest.raises(KernelError, match=r"no whole answer to /config_dump within 0\.3 s"):
            get(answer)


def test_one_that_never_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_admin, "LONGEST", 1 << 20)
    with pytest.raises(KernelError, match="answers with more than 1 MiB"):
        get(sending(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (2 << 20)))


@pytest.mark.parametrize(
    "target", ["http://", "http://:15000", "http://a/b:1", "http://127.0.0.1:99999", "unix:", "unix:/none"]
)
def test_what_is_no_address_is_said(target: str) -> None:
    with pytest.raises(KernelError) as caught:
        envoy_admin.get(target, "/config_dump")
    assert target in str(caught.value)


def test_endpoints() -> None:
    assert envoy_admin.endpoint("http://localhost") == ("localhost", 15000)
    assert envoy_admin.endpoint("http://[::1]:9901/") == ("::1", 9901)
