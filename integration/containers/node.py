"""A node for pods: a network namespace in which container runtimes make their pods' networks, and an upstream.

    pod  eth0 10.79.0.N, fd79::N  ──── veth  node 10.79.0.1, fd79::1   (CNI's plugins ptp and host-local)

The machine's own namespace sees nothing of it: no interface, no route, no rule.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from integration.containers.engine import ROOT as TREE
from integration.containers.envoy import Admin, binary
from integration.containers.envoy_config import Service, sidecar
from integration.containers.serving import Server, get
from integration.kit.endpoints import Address, opened
from integration.kit.namespace import Namespace
from istio_init.model.rules import IPV4, IPV6

NETWORK = "pods"
ADDRESS = "10.79.0.1"
APP_PORT, UPSTREAM_PORT = 8080, 80
PLUGINS = "/usr/lib/cni"
SERVE = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8080, bind='0.0.0.0')"


class Node:
    """From `with` to its end; `directory` holds what its pods mount, and the runtimes' state.

    `programs` and `networks` are where its CNI plugins and their configuration are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.namespace = Namespace()
        self.programs, self.networks = Path(PLUGINS), directory / "networks"

    def __enter__(self) -> Self:
        assert Path(PLUGINS, "ptp").exists(), f"no CNI plugins in {PLUGINS}; scripts/test installs them"
        with contextlib.ExitStack() as stack:
            self.directory.mkdir()
            stack.enter_context(self.namespace)
            # Before there is a pod the address is on lo; ptp gives it to each pod's veth as well.
            self.namespace.run("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
            listener = opened(self.namespace, IPV4, socket.SOCK_STREAM)
            listener.bind((ADDRESS, UPSTREAM_PORT))
            listener.listen()
            self.upstream = stack.enter_context(Server("upstream", listener))
            self._stack = stack.pop_all()
        self.write_networks()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def write_networks(self) -> None:
        """Configure the network."""
        ranges = [[{"subnet": "10.79.0.0/24"}], [{"subnet": "fd79::/64"}]]
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        addresses = {"type": "host-local", "dataDir": f"{self.directory}/addresses", "ranges": ranges, "routes": routes}
        network = {"cniVersion": "0.4.0", "name": NETWORK, "plugins": [{"type": "ptp", "ipam": addresses}]}
        self.networks.mkdir()
        Path(self.networks, f"{NETWORK}.conflist").write_text(json.dumps(network))

    def entered(self) -> list[str]:
        """What a command begins with to be run in the node's network, and in nothing else of another kind."""
        return ["nsenter", f"--net={self.namespace.path}"]

    def ask(self, to: Address) -> str:
        """What a client on the node is answered by HTTP."""
        return get(opened(self.namespace, IPV4, socket.SOCK_STREAM), to)

    def prepare_sidecar(self, name: str, *, tproxy: bool) -> Sidecar:
        """Write a sidecar's configuration where its container finds it."""
        return Sidecar(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory)), tproxy=tproxy)


class Sidecar(Admin):
    """A sidecar that runs in a container: its files on the node, mounted at the same place inside."""

    def __init__(self, directory: Path, *, tproxy: bool) -> None:
        super().__init__(directory / "admin")
        self.directory, self.tproxy = directory, tproxy
        directory.chmod(0o777)
        # The pod's address is not known yet; nobody calls the service here.
        services = {IPV4: Service("10.96.0.1", "127.0.0.1", APP_PORT), IPV6: Service("fd96::1", "::1", APP_PORT)}
        self.config = directory / "config.json"
        self.config.write_text(json.dumps(sidecar(services, self.path, tproxy=tproxy)))

    @property
    def command(self) -> list[str]:
        """What the container runs."""
        return [str(binary()), "-c", str(self.config), "--concurrency", "1", "--disable-hot-restart"]

    @property
    def mounts(self) -> list[str]:
        """What it mounts, each at the place where it lies on the node."""
        return [str(binary().parent), str(self.directory)]

    @property
    def user(self) -> dict[str, Any]:
        """Its securityContext, as the injection has it."""
        add = ["NET_ADMIN"] if self.tproxy else []
        capabilities = {"drop": ["ALL"], "add": add}
        return {
            "runAsUser": 0 if self.tproxy else 1337,
            "runAsGroup": 1337,
            "allowPrivilegeEscalation": False,
            "capabilities": capabilities,
        }


def snippet(mode: str = "REDIRECT") -> str:
    """The init container of docs/deploy.md, as YAML."""
    page = (TREE / "docs/deploy.md").read_text()
    match = re.search(r"^```yaml\n(initContainers:\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert match, "docs/deploy.md has no init container"
    return match[1].replace("- REDIRECT\n", f"- {mode}\n")


def arguments(text: str) -> list[str]:
    """The arguments of the snippet's container."""
    return [line.removeprefix("  - ").strip('"') for line in text.splitlines() if line.startswith("  - ")]
