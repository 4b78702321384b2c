"""A pod with real rules and Istio's configuration in a real Envoy, servers everywhere, and clients of every kind."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from types import TracebackType
from typing import Any, Self

from integration.containers.envoy import APP_USER, PATIENCE, REDIRECT_USER, TPROXY_USER, Envoy
from integration.containers.serving import Server
from integration.envoy import istio_config
from integration.kit.endpoints import ROOT
from integration.kit.pod import ADDRESSES, APP, Pod
from istio_init.cli.verbs.packet_flags import run_as
from istio_init.cli.verbs.subject import Subject, Where, subject
from istio_init.envoy.client import CLIENTS, Client, HttpCall
from istio_init.envoy.dump import load
from istio_init.envoy.path import Path, follow
from istio_init.envoy.path import Pod as Followed
from istio_init.envoy.walk import Configuration
from istio_init.model.packet import Packet
from istio_init.model.rules import IPV4
from istio_init.simulate.path import routed
from tests.kit.options import options

# Istio's configuration here has no listener for IPv6.
BASE = "--no-enable-ipv6 -p 15001 -z 15006 -u 1337 -i * -b *"
ARTICLE = f"{BASE} -d 15090,15020"
PORTS = (9080, 8001, 7071, 7070, 5432, 1234)
LINE = b"plain words\r\n"


class World:
    """All of it from `with` to its end. `change` alters Istio's configuration before Envoy loads it."""

    def __init__(
        self, mode: str, flags: str = ARTICLE, change: istio_config.Change | None = None, *, proxy: str = "",
        registry_only: bool = False,
    ) -> None:  # fmt: skip
        self.mode, self.flags, self.proxy = mode, flags, proxy
        value = istio_config.dump(mode, registry_only=registry_only)
        if change:
            change(value)
        self.pod = Pod(IPV4)
        user = APP_USER if proxy else TPROXY_USER if mode == "TPROXY" else REDIRECT_USER
        self.envoy = Envoy(self.pod.namespace, user, lambda admin: istio_config.written(value, admin))
        self.addresses = ADDRESSES[IPV4]
        self._read = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.pod)
            for address in istio_config.SERVICES:
                self.pod.peer.run("ip", "address", "add", f"{address}/32", "dev", "lo")
            # Envoy takes a client's address with a port of its own, which must be none of the client's.
            self.pod.namespace.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 60999")
            self.servers: dict[str, list[Server]] = {"app": [], "peer": []}
            for port in PORTS:
                self.pod.listen(f"app {port}", port, APP)
                self.pod.listen_at_peer(f"peer {port}", port)
                for name, servers in self.servers.items():
                    server = Server(name, self.pod.listeners.pop(f"{name} {port}"))
                    servers.append(stack.enter_context(server))
            stack.enter_context(self.envoy)
            self.pod.apply(f"{self.flags.replace('*', chr(39) + '*' + chr(39))} -m {self.mode}")
            self._stack = stack.pop_all()
        self.configuration = Configuration(load(self.envoy.ask("/config_dump?include_eds")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def subject(self) -> Subject:
        """What the kernel holds of the pod."""
        chosen = options([*self.flags.split(), "-m", self.mode, "--force-iptables-binary", "legacy"], {})
        assert chosen
        chosen = chosen.replace(network_namespace=self.pod.namespace.path)
        return run_as(subject(chosen, Where(live=True)), self.proxy)

    def walk(self, direction: str, address: str, port: int, client: Client) -> Path:
        """The one path of a connection by the walk."""
        about = self.subject()
        there = socket.inet_aton(address)
        if direction == "in":
            source = socket.inet_aton(self.addresses.outer)
            packet = Packet("PREROUTING", 6, source, there, 20000, port, in_interface="veth0")
        else:
            sent = Packet("OUTPUT", 6, about.facts.source(there), there, 40000, port, uid=APP.uid, gid=APP.gid)
            packet = routed(sent, about.facts).packet
        pod = Followed(about.ruleset(IPV4), about.facts, about.envoy, self.configuration)
        (path,) = follow(pod, packet, client)
        return path

    def call(self, direction: str, address: str, port: int, client: Client, patience: float = PATIENCE) -> str:
        """A real connection: who answered, or the status that Envoy gave, or how it ended."""
        if direction == "in":
            result = self.pod.client(ROOT, (self.addresses.outer, 0), at=self.pod.peer)
        else:
            result = self.pod.client(APP)
        result.settimeout(patience)
        try:
            with result:
                result.connect((address, port))
                return self._talk(result, client)
        except TimeoutError:
            return "hangs"
        except (ConnectionError, ssl.SSLError):
            return "closed"

    def _talk(self, connection: socket.socket, client: Client) -> str:
        if client.application == "silence":
            connection.settimeout(1)
            return "closed" if not connection.recv(1) else "spoke"
        words = LINE
        if client.is_http:
            request = client.request
            headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
            words = f"{request.method} {request.path} HTTP/1.1\r\nHost: {request.host}\r\n{headers}\r\n".encode()
        if client.transport == "tls":
            with self._secured(connection, client) as secured:
                return self._answer(secured, words)
        return self._answer(connection, words)

    def _answer(self, connection: socket.socket, words: bytes) -> str:
        connection.sendall(words)
        answer = connection.recv(65536)
        if not answer:
            return "closed"
        if answer.startswith(b"HTTP/1.1 200"):
            return answer.rpartition(b"\r\n\r\n")[2].decode()
        return answer.split()[1].decode() if answer.startswith(b"HTTP/") else "echo"

    def _secured(self, connection: socket.socket, client: Client) -> socket.socket:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(list(client.alpn))
        if client.certificate:
            directory = self.envoy.path.parent
            context.load_cert_chain(directory / "client.crt", directory / "client.key")
        return context.wrap_socket(connection, server_hostname=client.sni or None)

    def logged(self, count: int) -> list[dict[str, Any]]:
        """The entries that Envoy's access log has got, once there are so many."""
        end = time.monotonic() + PATIENCE
        path = self.envoy.path.parent / "access"
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= self._read + count:
                new, self._read = lines[self._read :], len(lines)
                return [json.loads(line) for line in new]
            assert time.monotonic() < end, f"{count} entries expected, these came: {lines[self._read :]}"
            time.sleep(0.01)


def client(speaks: str, host: str = "", path: str = "/", **headers: str) -> Client:
    """A client of a kind with its request."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return CLIENTS[speaks].replace(request=HttpCall(host, path, "GET", named))
