"""A node whose networks capture pods: Debian's bridge, firewall and portmap in a chain, and our plugin behind them.

    pod  eth0 10.79.1.N, fd79:1::N  ──── veth  bridge cni1 10.79.1.1, fd79:1::1   (the second network: cni2, 10.79.2.N)

Ours comes by what `istio-init cni install` does, as on any node. The first process of the pods is first.c.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from integration.containers.engine import SYSTEM, Engine, tool
from integration.containers.node import ADDRESS, PLUGINS, UPSTREAM_PORT, Node
from integration.kit.namespace import Namespace
from istio_init.cni.node import install
from istio_init.cni.node.conflist import PLUGIN
from istio_init.cni.node.directories import Directories
from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.settings import CAPABILITY
from istio_init.inspect.state import findings, inspect
from istio_init.log import Log

FIRST = "localhost/istio-init-first:test"
SOURCE = Path(__file__).with_name("first.c")
# What first.c dials, and what it then says where it was captured.
TARGET = (ADDRESS, str(UPSTREAM_PORT))
CAPTURED = f"captured 15001 {':'.join(TARGET)}\n"
# The newest version of the spec that Debian's plugins speak.
VERSION = "1.0.0"


def make_first(engine: Engine, directory: Path) -> None:
    """The image of first.c and nothing else; as it is, it serves for a pod's first container."""
    program = directory / "first"
    subprocess.run([tool("gcc"), "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, SOURCE], check=True)
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(program, "first")
    engine.cli(
        "import", "--change", f"ENTRYPOINT {json.dumps(['/first', *TARGET])}", "-", FIRST, text=archive.getvalue()
    )


class Traces(NamedTuple):
    """What pods have on a node while they are there: leases, marks, interfaces, and rules about their addresses."""

    leases: list[str]
    marks: list[str]
    links: list[str]
    rules: list[str]


class ChainNode(Node):
    """A node with Debian's plugins and ours in one directory; `chain` makes networks of them.

    `plugin` is our program, or bundle, to install; unset, the one that pip has put beside the interpreter.
    """

    def __init__(self, directory: Path, plugin: Path | None = None) -> None:
        super().__init__(directory)
        self.plugin = plugin or Path(sys.executable).with_name(PLUGIN)

    def write_networks(self) -> None:
        """Have the plugins, and no network yet."""
        self.networks.mkdir()
        self.programs = self.directory / "programs"
        self.programs.mkdir()
        for plugin in Path(PLUGINS).iterdir():
            (self.programs / plugin.name).symlink_to(plugin)
        self.addresses, self.run_dir = self.directory / "addresses", self.directory / "marks"
        self.log = self.directory / "cni.log"
        self._chains = 0

    def chain(self, name: str, *, ours: bool = True, **entry: Any) -> Path:  # noqa: ANN401 (JSON)
        """The directory of a new network of this name; `entry` is our plugin's in it."""
        self._chains += 1
        directory = self.networks / name
        directory.mkdir()
        plugins = [
            {"type": "bridge", "bridge": f"cni{self._chains}", "isGateway": True, "ipam": self._ipam(self._chains)},
            {"type": "firewall", "backend": "iptables"},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        network = {"cniVersion": VERSION, "name": name, "plugins": plugins}
        (directory / f"{name}.conflist").write_text(json.dumps(network, indent=2))
        if ours:
            own = {
                "type": PLUGIN,
                "capabilities": {CAPABILITY: True},
                "log_file": str(self.log),
                "run_dir": str(self.run_dir),
                **entry,
            }
            install.install(Directories(str(directory), str(self.programs)), str(self.plugin), own)
        return directory

    def _ipam(self, number: int) -> dict[str, Any]:
        ranges = [[{"subnet": f"10.79.{number}.0/24"}], [{"subnet": f"fd79:{number}::/64"}]]
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        return {"type": "host-local", "dataDir": str(self.addresses), "ranges": ranges, "routes": routes}

    def state(self, container: str) -> sandbox_state.SandboxState:
        """The state that our plugin has left of a sandbox."""
        contents = sandbox_state.read(container, str(self.run_dir))
        assert contents, container
        return contents

    def log_of(self, container: str) -> list[dict[str, str]]:
        """What the plugin has logged of a sandbox."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["sandbox"] == container]

    def traces(self) -> Traces:
        """What there is of pods at this moment."""
        leases = [path.name for path in self.addresses.rglob("*") if path.name[0].isdecimal() or ":" in path.name]
        links = self.namespace.run("ip", "-brief", "link").splitlines()
        saved = "".join(self.namespace.run(f"{name}-save") for name in ("iptables", "ip6tables"))
        return Traces(
            sorted(leases),
            list(sandbox_state.containers(str(self.run_dir))),
            [link for link in links if link.startswith("veth")],
            [rule for rule in saved.splitlines() if "10.79." in rule or "fd79:" in rule],
        )


class Attachment(NamedTuple):
    """A pod's namespace on a network of a node: the list's plugins called as a runtime calls them."""

    node: ChainNode
    network: str
    pod: Namespace
    container: str
    annotations: dict[str, str]

    def add(self) -> dict[str, float]:
        """Attach it; returns the seconds that each plugin's ADD took, by its type."""
        seconds: dict[str, float] = {}
        result: dict[str, Any] = {}
        for plugin in self._plugins:
            begin = time.perf_counter()
            done = self._call("ADD", plugin, result)
            seconds[plugin["type"]] = time.perf_counter() - begin
            assert done.returncode == 0, done.stdout + done.stderr
            result = {"prevResult": json.loads(done.stdout)}
        (self.node.directory / self.container).write_text(json.dumps(result))
        return seconds

    def check(self) -> dict[str, Any]:
        """What the plugin says in whose eyes something is not as ADD left it; empty where all are content."""
        result = json.loads((self.node.directory / self.container).read_text())
        done = next((done for each in self._plugins if (done := self._call("CHECK", each, result)).returncode), None)
        document: dict[str, Any] = json.loads(done.stdout) if done else {}
        return document

    def delete(self) -> None:
        """Detach it."""
        result = json.loads((self.node.directory / self.container).read_text())
        for plugin in reversed(self._plugins):
            done = self._call("DEL", plugin, result)
            assert (done.returncode, done.stdout) == (0, ""), done

    @property
    def _plugins(self) -> list[dict[str, Any]]:
        path = self.node.networks / self.network / f"{self.network}.conflist"
        return list(json.loads(path.read_text())["plugins"])

    def _call(self, command: str, plugin: dict[str, Any], more: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        runtime = {"runtimeConfig": {CAPABILITY: self.annotations}} if plugin["type"] == PLUGIN else {}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.node.programs),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={self.container}",
            "PATH": SYSTEM,
        }
        text = json.dumps({**plugin, "cniVersion": VERSION, "name": self.network, **runtime, **more})
        program = [str(self.node.programs / plugin["type"])]
        return self.node.namespace.inside(
            lambda: subprocess.run(program, input=text, env=environment, capture_output=True, text=True, check=False)
        )


def differences(state: sandbox_state.SandboxState) -> tuple[str, ...]:
    """How the rules in a sandbox differ from those of its state's options."""
    assert state.options
    return findings(inspect(state.options.replace(network_namespace=state.netns), Log("none")))
