"""Pods of `podman kube play` with our image as the first init container, as docs/deploy.md says."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.containers.conftest import BASE, IMAGE, Built
from integration.containers.engine import Engine
from integration.containers.node import ADDRESS, APP_PORT, UPSTREAM_PORT, Node, Sidecar, arguments, snippet
from integration.containers.podman import Podman
from integration.containers.test_docker import preview
from integration.kit.endpoints import awaited

SERVE = ["/usr/bin/python3", "-m", "http.server", str(APP_PORT), "--directory", "/etc/apt"]
FETCH = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1], timeout=20).read())"
# By default podman removes an init container that has ended, and its log with it.
KEPT = "io.podman.annotations.init.container.type: always"


@pytest.fixture(scope="module")
def node(state: Path) -> Iterator[Node]:
    """A node with an upstream on it."""
    with Node(state / "pods") as instance:
        yield instance


@pytest.fixture(scope="module")
def podman(engine: Engine, image: Built, node: Node) -> Iterator[Podman]:
    """Podman with both images."""
    with Podman(node) as instance:
        instance.load(engine, IMAGE, BASE)
        yield instance


def manifest(name: str, init: str, sidecar: Sidecar, mounts: dict[str, str] | None = None) -> str:
    """A Pod: the init container as given (YAML), a sidecar and an app; `mounts` are files for the init container."""
    files = mounts or {}
    if files:
        places = [{"name": f"file{number}", "mountPath": path} for number, path in enumerate(files.values())]
        init += f"  volumeMounts: {json.dumps(places)}\n"
    volumes = [{"name": f"file{n}", "hostPath": {"path": path, "type": "File"}} for n, path in enumerate(files)]
    volumes += [{"name": f"sidecar{n}", "hostPath": {"path": path}} for n, path in enumerate(sidecar.mounts)]
    containers = [
        {
            "name": "istio-proxy",
            "image": BASE,
            "imagePullPolicy": "Never",
            "command": sidecar.command,
            "securityContext": sidecar.user,
            "volumeMounts": [{"name": f"sidecar{n}", "mountPath": path} for n, path in enumerate(sidecar.mounts)],
        },
        {
            "name": "app",
            "image": BASE,
            "imagePullPolicy": "Never",
            "command": SERVE,
            "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
        },
    ]
    head = f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{{KEPT}}}\nspec:\n"
    rest = f"  containers: {json.dumps(containers)}\n  volumes: {json.dumps(volumes)}\n  restartPolicy: Never\n"
    return head + textwrap.indent(init.replace(f"{IMAGE}\n", f"{IMAGE}\n  imagePullPolicy: Never\n"), "  ") + rest


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_a_pod_with_a_sidecar(podman: Podman, node: Node, mode: str) -> None:
    name = mode.lower()
    sidecar = node.prepare_sidecar(name, tproxy=mode == "TPROXY")
    with podman.removing(name):
        played = podman.play(manifest(name, snippet(mode), sidecar))
        assert played.returncode == 0, played.stderr.decode()
        assert podman.inspect(f"{name}-istio-init")["State"]["ExitCode"] == 0
        assert podman.inspect(f"{name}-istio-init")["EffectiveCaps"] == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
        in_place(podman, f"{name}-app", mode)
        captured(podman, node, name, sidecar)


def test_a_pod_that_is_stopped_and_started(podman: Podman, node: Node) -> None:
    sidecar = node.prepare_sidecar("restarted", tproxy=False)
    with podman.removing("restarted"):
        played = podman.play(manifest("restarted", snippet(), sidecar))
        assert played.returncode == 0, played.stderr.decode()
        podman.run("pod", "stop", "--time=0", "restarted")
        podman.run("pod", "start", "restarted")
        in_place(podman, "restarted-app", "REDIRECT")
        captured(podman, node, "restarted", sidecar)


@pytest.mark.parametrize(
    ("wrong", "code", "reason"),
    [
        (('"15001"', '"70000"'), 1, "70000"),
        (("add: [NET_ADMIN, NET_RAW]", "add: [NET_RAW]"), 1, "NET_ADMIN missing"),
    ],
)
def test_a_failure_keeps_the_app_from_starting_and_says_why(
    podman: Podman, node: Node, wrong: tuple[str, str], code: int, reason: str
) -> None:
    sidecar = node.prepare_sidecar(f"failing-{code}", tproxy=False)
    # What a kubelet mounts there for every container.
    message = node.directory / f"termination-log-{code}"
    message.touch(0o666)
    text = snippet()
    assert wrong[0] in text
    with podman.removing("failing"):
        mounts = {str(message): "/dev/termination-log"}
        played = podman.play(manifest("failing", text.replace(*wrong), sidecar, mounts))
        assert played.returncode == 125
        ended = podman.inspect("failing-istio-init")["State"]
        assert (ended["Status"], ended["ExitCode"]) == ("exited", code)
        assert podman.inspect("failing-app")["State"]["Status"] == "created"
        assert message.read_text()
        assert reason in message.read_text()
        assert podman.log("failing-istio-init").rstrip().endswith(message.read_text())


def in_place(podman: Podman, container: str, mode: str) -> None:
    """The nat table of the container's namespace is what a dry run of the same arguments prints."""
    pid = podman.inspect(container)["State"]["Pid"]
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "iptables-legacy-save", "-t", "nat"]
    saved = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    desired = preview(*arguments(snippet(mode))[1:])
    rules = [
        line for line in desired.partition("*nat\n")[2].partition("COMMIT")[0].splitlines() if line.startswith("-A")
    ]
    assert [line for line in saved.splitlines() if line.startswith("-A")] == rules


def captured(podman: Podman, node: Node, name: str, sidecar: Sidecar) -> None:
    """A request in and a request out, both through the sidecar."""
    awaited(sidecar.ready, "the sidecar")
    address = pod_address(podman, name)
    awaited(lambda: "Serving" in podman.log(f"{name}-app"), "the app")
    with sidecar.watched() as moved:
        assert "sources.list" in node.ask((address, APP_PORT))
    assert moved == {"inbound_ipv4": 1, "app_ipv4": 1}
    client = ADDRESS if sidecar.tproxy else "127.0.0.6"
    assert podman.log(f"{name}-app").splitlines()[-1].startswith(f"{client} - - ")
    with sidecar.watched() as moved:
        url = f"http://{ADDRESS}:{UPSTREAM_PORT}/"
        assert podman.run("exec", f"{name}-app", "/usr/bin/python3", "-c", FETCH, url) == "upstream"
    assert moved == {"outbound_ipv4": 1, "passthrough_ipv4": 1}


def pod_address(podman: Podman, name: str) -> str:
    """The pod's IPv4 address."""
    pods = json.loads(podman.run("pod", "inspect", name))
    infra = podman.inspect(pods["InfraContainerID"])
    return str(infra["NetworkSettings"]["Networks"]["pods"]["IPAddress"])
