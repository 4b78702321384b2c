"""The app in the pod and the upstream outside: HTTP/1.1 and plain TCP on one port, and who asked."""

from __future__ import annotations

import http.client
import socket
import threading
from types import TracebackType
from typing import Self

from integration.kit.endpoints import PATIENCE, Address
from integration.kit.namespace import Namespace


class Server:
    """Serves a listening socket from `with` to its end; closes it.

    An HTTP request is answered with the server's name, anything else with what came in capitals. `peers` are the
    other ends of all connections so far.
    """

    def __init__(self, name: str, listener: socket.socket) -> None:
        self.name, self.peers = name, list[Address]()
        self.listener = listener
        self._connections = set[socket.socket]()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self.listener.settimeout(None)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.listener.close()
        for each in list(self._connections):
            each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self.listener.accept()
            except OSError:
                return
            self.peers.append(peer[:2])
            threading.Thread(target=self._answer, args=(connection,)).start()

    def _answer(self, connection: socket.socket) -> None:
        body = self.name.encode()
        with connection:
            self._connections.add(connection)
            try:
                while data := connection.recv(65536):
                    if data.startswith(b"GET "):
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                    else:
                        connection.sendall(data.upper())
            except OSError:
                pass
            finally:
                self._connections.discard(connection)


def get(client: socket.socket, to: Address) -> str:
    """Connect a client and ask by HTTP/1.1; returns the body. The client is closed."""
    with client:
        client.settimeout(PATIENCE)
        client.connect(to)
        connection = http.client.HTTPConnection("app")
        connection.sock = client
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, f"{to}: {answer.status}: {body}"
        return body


def talk(client: socket.socket, to: Address, text: str = "plain words") -> str:
    """Connect a client and say a line that is no HTTP; returns the answer, empty where the other end just closes."""
    with client:
        client.settimeout(PATIENCE)
        client.connect(to)
        client.sendall(f"{text}\r\n".encode())
        try:
            return client.recv(65536).decode().strip()
        except ConnectionResetError:
            return ""


def http2(namespace: Namespace, user: tuple[str, ...], to: Address) -> tuple[str, str]:
    """Ask by HTTP/2 without TLS, as the user of these setpriv flags; returns the answer's version and its body."""
    host = f"[{to[0]}]" if ":" in to[0] else to[0]
    flags = [
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--http2-prior-knowledge",
        "--write-out",
        r"\n%{http_version}",
    ]
    text = namespace.run("setpriv", *user, "curl", *flags, f"http://{host}:{to[1]}/")
    body, _, version = text.rpartition("\n")
    return version, body
