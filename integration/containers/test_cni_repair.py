"""`istio-init cni repair` against a real container runtime: pods in every state, and what becomes of them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cri_api.v1.api_pb2 as api
import pytest
import yaml

from integration.containers.cri import PAUSE, Containerd, CriPod, make_pause
from integration.containers.engine import ROOT, Engine
from integration.containers.node import ADDRESS, UPSTREAM_PORT, Node
from integration.kit import program
from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.endpoints import PATIENCE, User, opened
from integration.kit.namespace import Namespace
from istio_init.cni.node import cri
from istio_init.cni.plugin.sandbox_state import SandboxState
from istio_init.cni.plugin.settings import CAPABILITY
from istio_init.kernel.host.grpc import GrpcChannel, GrpcError
from istio_init.model.rules import IPV4

PROGRAM = [*program.VERBS, "cni", "repair"]
# Every run has the capabilities of the pod that does this in a cluster, and no others.
POD = yaml.safe_load((ROOT / "deploy/cni-repair.yaml").read_text())["spec"]["template"]
ADDED = POD["spec"]["containers"][0]["securityContext"]["capabilities"]["add"]
RIGHTS = ",".join(["-all", *(f"+{name.lower()}" for name in ADDED)])
WITH_THOSE_RIGHTS = ["setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}"]
PORTS = "traffic.sidecar.istio.io/includeInboundPorts"
UPSTREAM = (ADDRESS, UPSTREAM_PORT)


@pytest.fixture(scope="module")
def node(state: Path) -> Iterator[Node]:
    """A node with an upstream on it."""
    with Node(state / "repair") as instance:
        yield instance


@pytest.fixture(scope="module")
def containerd(engine: Engine, node: Node) -> Iterator[Containerd]:
    """Containerd that can make sandboxes."""
    make_pause(engine)
    with Containerd(node) as instance:
        instance.load(engine, PAUSE)
        yield instance


class Repairing:
    """The verb on the node: what it is set up to do, what it says, and the plugin of the same configuration."""

    def __init__(self, containerd: Containerd, directory: Path) -> None:
        self.containerd, self.directory = containerd, directory
        self.plugin = Plugin(directory, capabilities={CAPABILITY: True}, exclude_namespaces=["kube-system"])
        keys = ("type", "log_file", "run_dir", "capabilities", "exclude_namespaces")
        entry = {key: self.plugin.configuration[key] for key in keys}
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}, entry]}
        # Not where the runtime looks: these pods were made before the plugin was there.
        (directory / "10-pods.conflist").write_text(json.dumps(network))

    def run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """One run on the node."""
        places = [f"--cri-socket=unix://{self.containerd.directory}/sock", f"--cni-net-dir={self.directory}"]
        command = [*self.containerd.node.entered(), *WITH_THOSE_RIGHTS, *PROGRAM, *places, *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def report(self, code: int, *flags: str) -> dict[str, dict[str, Any]]:
        """What a run that ends with this code says of each pod, by name."""
        done = self.run("--output=json", *flags)
        assert (done.returncode, done.stderr) == (code, ""), f"{done.stdout}{done.stderr}"
        document = json.loads(done.stdout)
        assert document["code"] == code
        return {pod["pod"]: pod for pod in document["pods"]}


class Inside(Namespace):
    """A pod's namespace, which the runtime has made and removes; its lock is in a directory that goes as well."""

    def __init__(self, path: str, directory: Path) -> None:
        super().__init__()
        self.path, self.name = path, Path(path).name
        self.lock = str(directory / f"{self.name}.lock")
        self.environment["XTABLES_LOCKFILE"] = self.lock


@pytest.fixture
def repairing(containerd: Containerd, tmp_path: Path) -> Repairing:
    return Repairing(containerd, tmp_path)


def inside(containerd: Containerd, pod: CriPod) -> Inside:
    request = api.PodSandboxStatusRequest(pod_sandbox_id=pod.identity, verbose=True)
    document = json.loads(containerd.runtime.PodSandboxStatus(request).info["info"])
    [path] = [each["path"] for each in document["runtimeSpec"]["linux"]["namespaces"] if each["type"] == "network"]
    return Inside(path, containerd.directory)


@contextlib.contextmanager
def connected(namespace: Namespace, user: User) -> Iterator[socket.socket]:
    """A connection from a pod to the node's upstream, at work."""
    with opened(namespace, IPV4, socket.SOCK_STREAM, user) as client:
        client.settimeout(PATIENCE)
        client.connect(UPSTREAM)
        assert echoed(client) == b"WORDS"
        yield client


def echoed(client: socket.socket) -> bytes:
    client.sendall(b"words")
    return client.recv(64)


# Pods by what they ask for; the plugin was there for one of them.
ASKING = {"early": INJECTED, "drifted": INJECTED, "plain": {}, "bad": {**INJECTED, PORTS: "x"}}


class Pods:
    """One pod in every state, from `with` to its end."""

    def __init__(self, repairing: Repairing) -> None:
        self.containerd, self.plugin = repairing.containerd, repairing.plugin

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.pods = {
                name: stack.enter_context(self.containerd.pod(name, annotations=annotations))
                for name, annotations in ASKING.items()
            }
            network = api.NamespaceOption(network=api.NODE)
            linux = api.LinuxPodSandboxConfig(
                security_context=api.LinuxSandboxSecurityContext(namespace_options=network),
                cgroup_parent=f"/{self.containerd.group}",
            )
            self.pods["host"] = stack.enter_context(self.containerd.pod("host", linux=linux, hostname=""))
            self.spaces = {name: inside(self.containerd, self.pods[name]) for name in ASKING}
            drifted = self.spaces["drifted"]
            self.plugin.done("ADD", drifted.path, INJECTED, container=self.pods["drifted"].identity)
            self.desired = rules(drifted)
            drifted.run("iptables-legacy", "-t", "nat", "-D", "ISTIO_OUTPUT", "1")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def stop(self, name: str) -> None:
        """End a pod, which the runtime still knows then."""
        self.containerd.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=self.pods[name].identity))

    def state(self, name: str) -> SandboxState | None:
        """What the plugin knows of a pod."""
        return self.plugin.state(self.pods[name].identity)

    def is_whole(self, name: str) -> bool:
        """Whether the rules are those that an ADD makes, and the plugin says so as well."""
        space, pod = self.spaces[name], self.pods[name]
        self.plugin.done("CHECK", space.path, INJECTED, container=pod.identity, prevResult=PREVIOUS)
        return rules(space) == self.desired


def rules(space: Namespace) -> str:
    """All rules; not what the chains have counted."""
    return re.sub(r"\[\d+:\d+\]", "", repr(program.all_saved(space)))


def standing(space: Namespace) -> tuple[str, str]:
    """All that a fix may change."""
    return rules(space), program.routing(space)


def test_pods_in_every_state(repairing: Repairing) -> None:
    with Pods(repairing) as pods, contextlib.ExitStack() as stack:
        before = {name: standing(space) for name, space in pods.spaces.items()}
        untracked = stack.enter_context(connected(pods.spaces["early"], User(1000, 1000)))
        tracked = stack.enter_context(connected(pods.spaces["drifted"], User(1337, 1337)))
        actual = repairing.report(1)
        assert {name: pod["state"] for name, pod in actual.items()} == {
            "early": "uncaptured",
            "drifted": "drifted",
            "plain": "passed through",
            "bad": "unknown",
            "host": "host network",
        }
        assert actual["early"].items() >= {"namespace": "default", "uid": "early", "connections": 1}.items()
        assert "before the plugin was ready" in actual["early"]["why"]
        assert actual["drifted"]["differences"][0].startswith("ipv4 nat ISTIO_OUTPUT rule 1 missing")
        assert PORTS in actual["bad"]["why"]
        assert {name: standing(space) for name, space in pods.spaces.items()} == before
        assert [name for name in pods.pods if pods.state(name)] == ["drifted"]

        pods.stop("bad")
        lines = repairing.run().stdout.splitlines()
        assert next(line for line in lines if "default/early" in line).startswith("uncaptured ")
        assert lines[-1].endswith("--fix captures 2")
        actual = repairing.report(0, "--fix")
        assert actual["early"].items() >= {"state": "uncaptured", "fixed": True}.items()
        assert actual["bad"]["state"] == "gone"
        # The one connection is nobody's any more; the other was tracked before, and is the proxy's.
        with pytest.raises(ConnectionResetError):
            echoed(untracked)
        assert echoed(tracked) == b"WORDS"
        assert all(pods.is_whole(name) for name in ("early", "drifted"))
        assert standing(pods.spaces["plain"]) == before["plain"]
        state = pods.state("early")
        assert state
        assert (state.pod, state.attachments) == ("early", (("pods", "eth0"),))
        logged = [json.loads(line) for line in pods.plugin.log.read_text().splitlines()]
        desired = {"command": "repair", "pod": "early", "decision": "captured"}
        assert any(line.items() >= desired.items() for line in logged)
        again = repairing.report(0, "--fix")
        assert {again[name]["state"] for name in ("early", "drifted")} == {"captured"}
        assert not any(pod["fixed"] for pod in again.values())


def test_what_the_runtime_says_is_read_as_its_own_client_reads_it(containerd: Containerd) -> None:
    with containerd.pod("read", annotations={"a": "ä" * 5000}) as pod:
        request = api.PodSandboxStatusRequest(pod_sandbox_id=pod.identity)
        report = containerd.runtime.PodSandboxStatus(request).status
        with GrpcChannel(f"{containerd.directory}/sock") as channel:
            (actual,) = cri.sandboxes(channel)
            assert (actual.identity, actual.annotations) == (report.id, dict(report.annotations))
            assert actual.netns == inside(containerd, pod).path
            with pytest.raises(GrpcError, match=r"NoSuch: .*unknown"):
                channel.call("/runtime.v1.RuntimeService/NoSuch", b"")
            # The connection is as good as before.
            assert len(tuple(cri.sandboxes(channel))) == 1
