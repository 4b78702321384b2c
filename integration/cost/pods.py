"""Pods that are captured in every way, each with a real Envoy, an app and an upstream, to measure what that costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from integration.containers.envoy import APP_USER, REDIRECT_USER, ROOT_USER, TPROXY_USER
from integration.containers.mesh import APP_PORT, UPSTREAM_PORT, Mesh, answering
from integration.kit.ebpf_node import EbpfNode
from integration.kit.pod import options_of
from istio_init.log import Log
from istio_init.model.rules import IPV4
from istio_init.record import Record
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from integration.containers.envoy import Envoy
    from integration.containers.serving import Server

BASE = "-p 15001 -z 15006 -u 1337 -i '*' -b '*'"
CLIENT_PORTS, POD_PORTS = (10000, 29999), (30000, 60999)
EBPF = "ebpf"


class Setup(Record):
    """How a pod is captured: by the options, with which backend; without options, not at all."""

    options: str = ""
    backend: str = "legacy"
    user: tuple[str, ...] = REDIRECT_USER


PODS = {
    "none": Setup(),
    "excluded": Setup(f"{BASE} -m REDIRECT -d {APP_PORT} -o {UPSTREAM_PORT}"),
    "redirect": Setup(f"{BASE} -m REDIRECT"),
    "tproxy": Setup(f"{BASE} -m TPROXY", user=TPROXY_USER),
    "native": Setup(f"{BASE} -m REDIRECT", "native"),
    "ebpf": Setup(f"{BASE} -m REDIRECT", EBPF),
    "ebpf-tproxy": Setup(f"{BASE} -m TPROXY", EBPF, TPROXY_USER),
}


class Fast(Mesh):
    """A mesh whose app and upstream are Envoys, too: a slow server would hide what is measured behind its own tail."""

    def __init__(self, setup: Setup, node: EbpfNode) -> None:
        super().__init__(IPV4, setup.user)
        self._setup, self._node = setup, node
        self.envoys: list[Envoy] = [self.envoy]
        if setup.backend != EBPF:
            self.pod.backend = setup.backend

    def prepare(self) -> None:
        """Capture the pod, as long as no proxy listens."""
        # With TPROXY, Envoy takes the client's address with a port of the pod's: they must not meet.
        for namespace, (low, high) in ((self.pod.peer, CLIENT_PORTS), (self.pod.namespace, POD_PORTS)):
            namespace.run("sysctl", "-q", "-w", f"net.ipv4.ip_local_port_range={low} {high}")
        if self._setup.backend == EBPF:
            options = options_of(f"--enable-ipv6 {self._setup.options}")
            options = options.replace(capture_backend="ebpf", network_namespace=self.pod.namespace.path)
            socket_capture.add(options, self._node.installation, Log("none"))
        elif self._setup.options:
            self.pod.apply(self._setup.options)

    @contextlib.contextmanager
    def serving(self, server: Server) -> Iterator[None]:
        """An Envoy in the server's place."""
        server.listener.close()
        app = (self.pod.namespace, APP_USER, APP_PORT)
        upstream = (self.pod.peer, ROOT_USER, UPSTREAM_PORT)
        with answering(*(app if server.name == "app" else upstream)) as envoy:
            self.envoys.append(envoy)
            yield


@contextlib.contextmanager
def running(names: tuple[str, ...] = tuple(PODS)) -> Iterator[dict[str, Fast]]:
    """These pods, by name, captured and with their Envoys; this process is in the cgroup of the eBPF programs."""
    with EbpfNode() as node, contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Fast(PODS[name], node)) for name in names}
