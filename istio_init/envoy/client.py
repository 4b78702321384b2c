"""Clients: how they connect, what they send first, and their request, as far as Envoy distinguishes them."""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    Transport: TypeAlias = Literal["raw_buffer", "tls"]
    # The plaintext, or the payload of TLS: two versions of HTTP, other bytes, or silence until the server speaks.
    Application: TypeAlias = Literal["http/1.1", "h2c", "bytes", "silence"]

RAW_BUFFER: Transport = "raw_buffer"
TLS: Transport = "tls"


class HttpCall(Record):
    """An HTTP request; header names are in lower case, `path` has the query with it."""

    host: str = ""
    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()

    def header(self, name: str) -> tuple[str, ...]:
        """All values of a header, pseudo-headers included; Envoy matches each on its own."""
        pseudo = {":authority": self.host, "host": self.host, ":path": self.path, ":method": self.method}
        if (name := name.lower()) in pseudo:
            return (pseudo[name],)
        return tuple(value for key, value in self.headers if key == name)


class Client(Record):
    """A client as a proxy sees it: how it connects, and what it sends (inside TLS if it uses TLS).

    `alpn` has the protocols in the client's order of preference; `certificate` is whether it presents one.
    """

    speaks: str
    transport: Transport
    application: Application
    alpn: tuple[str, ...] = ()
    sni: str = ""
    certificate: bool = False
    request: HttpCall = HttpCall()

    @property
    def is_http(self) -> bool:
        """Whether it makes HTTP requests."""
        return self.application in {"http/1.1", "h2c"}

    @property
    def decrypted(self) -> Client:
        """The same client after TLS termination."""
        return self.replace(transport=RAW_BUFFER, alpn=(), sni="", certificate=False)


# The protocols that a sidecar offers for an HTTP service (Istio's ALPN filter), in order of preference.
ISTIO_ALPN = ("istio-http/1.1", "istio", "http/1.1")

# The kinds of clients by their name for --speaks.
CLIENTS: dict[str, Client] = {
    "http": Client("http", RAW_BUFFER, "http/1.1"),
    "h2c": Client("h2c", RAW_BUFFER, "h2c"),
    "tls": Client("tls", TLS, "http/1.1", ("h2", "http/1.1")),
    "mtls": Client("mtls", TLS, "http/1.1", ISTIO_ALPN, certificate=True),
    "tcp": Client("tcp", RAW_BUFFER, "bytes"),
    "server-first": Client("server-first", RAW_BUFFER, "silence"),
}
