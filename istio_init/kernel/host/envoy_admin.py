"""Envoy's admin interface, asked over TCP in the calling thread's network namespace, or over a Unix socket.

An answer is bounded in size and in time as a whole: what listens at a pod's port need not be Envoy.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import time

from istio_init.errors import KernelError, shown

# Seconds for a whole answer, and bytes of it; a dump of 5,000 clusters and 2,000 listeners has about 20 MiB.
PATIENCE = 10.0
LONGEST = 64 << 20
PIECE = 1 << 16
DEFAULT_PORT = 15000

HTTP, UNIX = "http://", "unix:"


def is_address(target: str) -> bool:
    """Whether a text names an admin interface, not a file."""
    return target.startswith((HTTP, UNIX))


class _Received:
    """All that was received, in the place of a socket, for http.client to take apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        """What http.client reads from."""
        return io.BytesIO(self._data)


def get(target: str, path: str) -> bytes:
    """The answer to a GET of `path` at http://HOST:PORT or unix:PATH. KernelError, in one line, without one."""
    try:
        response = http.client.HTTPResponse(_Received(_ask(target, path)))  # type: ignore[arg-type] # all it calls
        response.begin()
        if response.status != http.HTTPStatus.OK:
            raise KernelError(f"{shown(target)}: answers {response.status} to {path}; is it Envoy's admin port?")
        return response.read()
    except TimeoutError:
        why = f"no whole answer to {path} within {PATIENCE:g} s; is it Envoy's admin port?"
        raise KernelError(f"{shown(target)}: {why}") from None
    except (http.client.HTTPException, ValueError) as error:
        why = f"no answer in HTTP ({type(error).__name__}); is it Envoy's admin port?"
        raise KernelError(f"{shown(target)}: {why}") from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise KernelError(f"{shown(target)}: {why}; is Envoy's admin interface there?", error.errno or 0) from None


def _ask(target: str, path: str) -> bytes:
    """All that comes back until the connection is closed, within the bounds: no header may trickle for ever."""
    end = time.monotonic() + PATIENCE
    response = bytearray()
    with _connected(target) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            piece = connection.recv(PIECE)
            if not piece:
                return bytes(response)
            response += piece
            if len(response) > LONGEST:
                raise KernelError(f"{shown(target)}: answers with more than {LONGEST >> 20} MiB")


def _connected(target: str) -> socket.socket:
    if target.startswith(UNIX):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        name = target.removeprefix(UNIX)
        try:
            # An abstract socket's name begins with @, as in /proc/net/unix.
            connection.connect(f"\0{name[1:]}" if name.startswith("@") else name)
        except BaseException:
            connection.close()
            raise
        return connection
    host, port = endpoint(target)
    return socket.create_connection((host, port), PATIENCE)


def endpoint(target: str) -> tuple[str, int]:
    """The host and the port of http://HOST:PORT; KernelError where it is none."""
    host, colon, port = target.removeprefix(HTTP).rstrip("/").rpartition(":")
    if not colon or not port.isdecimal():
        host, port = f"{host}{colon}{port}", str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or int(port) > 65535:
        raise KernelError(f"{shown(target)}: not http://HOST:PORT")
    return host, int(port)
