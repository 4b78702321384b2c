"""A pod through the CRI, step by step as a kubelet makes it: sandbox, init container, sidecar, app, exec, removal."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cri_api.v1.api_pb2 as api
import pytest

from integration.containers.conftest import BASE, IMAGE, Built
from integration.containers.cri import PAUSE, Containerd, CriPod, make_pause
from integration.containers.engine import Engine
from integration.containers.node import ADDRESS, APP_PORT, UPSTREAM_PORT, Node, Sidecar, arguments, snippet
from integration.containers.test_docker import explained
from integration.containers.test_pods import FETCH, SERVE
from integration.kit.endpoints import awaited
from istio_init.cli.app import main


@pytest.fixture(scope="module")
def node(state: Path) -> Iterator[Node]:
    """A node with an upstream on it."""
    with Node(state / "node") as instance:
        yield instance


@pytest.fixture(scope="module")
def containerd(engine: Engine, image: Built, node: Node) -> Iterator[Containerd]:
    """Containerd with all images."""
    make_pause(engine)
    with Containerd(node) as instance:
        instance.load(engine, PAUSE, IMAGE, BASE)
        yield instance


def rights(user: int, group: int, *capabilities: str, read_only: bool = False) -> api.LinuxContainerSecurityContext:
    """A securityContext as the kubelet hands it on: nothing but these capabilities, and no way to more."""
    return api.LinuxContainerSecurityContext(
        capabilities=api.Capability(add_capabilities=capabilities, drop_capabilities=["ALL"]),
        run_as_user=api.Int64Value(value=user),
        run_as_group=api.Int64Value(value=group),
        no_new_privs=True,
        readonly_rootfs=read_only,
        seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault),
    )


INIT = rights(0, 0, "NET_ADMIN", "NET_RAW", read_only=True)
VALIDATION = rights(1337, 1337, read_only=True)


def initialised(pod: CriPod, mode: str, *more: str) -> None:
    """Run the init container to its end, which has to be a good one."""
    identity = pod.start("istio-init", IMAGE, INIT, args=[*arguments(snippet(mode)), *more])
    assert pod.finished(identity) == 0, pod.log("istio-init")


def mount(path: str) -> api.Mount:
    """The same place inside as outside."""
    return api.Mount(container_path=path, host_path=path)


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_a_pod_with_a_sidecar(containerd: Containerd, node: Node, mode: str) -> None:
    sidecar = node.prepare_sidecar(mode, tproxy=mode == "TPROXY")
    with containerd.pod(mode.lower()) as pod:
        initialised(pod, mode, "--dual-stack")
        user = rights(0, 1337, "NET_ADMIN") if sidecar.tproxy else rights(1337, 1337)
        mounts = [mount(path) for path in sidecar.mounts]
        pod.start("istio-proxy", BASE, user, command=sidecar.command, mounts=mounts)
        app = pod.start("app", BASE, rights(1000, 1000), command=SERVE, envs=[_unbuffered()])
        captured(pod, node, sidecar, app)
        diagnosed(containerd, pod, mode.lower(), app)


def diagnosed(containerd: Containerd, pod: CriPod, name: str, app: str) -> None:
    """The pod by its name, a container by its id, a process: healthy, until a chain is flushed."""
    socket = ["--cri-socket", str(containerd.directory / "sock")]
    places = ([name], [f"default/{name}"], ["--container", app], ["--pid", str(pod.pid)])
    for place in places:
        code, text = diagnosis(*place, *socket)
        assert (code, text.splitlines()[0].split(":")[0]) == (0, "HEALTHY"), text
        assert "the init container's arguments, from the runtime" in text
    table = "mangle" if name == "tproxy" else "nat"
    flush = f"iptables-legacy -w -t {table} -F ISTIO_INBOUND || iptables-nft -w -t {table} -F ISTIO_INBOUND"
    subprocess.run(["nsenter", "--net", "--target", str(pod.pid), "sh", "-c", flush], check=True)
    for place in places:
        code, text = diagnosis(*place, *socket)
        assert code == 3, text
        assert "a chain of Istio's was flushed or removed: ISTIO_INBOUND" in text
    code, text = diagnosis("nobody", *socket)
    assert (code, "no running pod of that name" in text) == (4, True)


def diagnosis(*words: str) -> tuple[int, str]:
    """The exit code and the output of `diagnose`."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(["diagnose", *words], {})
    return code, output.getvalue()


def captured(pod: CriPod, node: Node, sidecar: Sidecar, app: str) -> None:
    """A request in and a request out, both through the sidecar."""
    awaited(sidecar.ready, "the sidecar")
    awaited(lambda: "Serving" in pod.log("app"), "the app")
    with sidecar.watched() as moved:
        assert "sources.list" in node.ask((pod.address, APP_PORT))
    assert moved == {"inbound_ipv4": 1, "app_ipv4": 1}
    client = ADDRESS if sidecar.tproxy else "127.0.0.6"
    awaited(lambda: f"{client} - - " in pod.log("app"), f"the app to be asked by {client}")
    with sidecar.watched() as moved:
        url = f"http://{ADDRESS}:{UPSTREAM_PORT}/"
        assert pod.exec(app, "/usr/bin/python3", "-c", FETCH, url) == (0, "upstream")
    assert moved == {"outbound_ipv4": 1, "passthrough_ipv4": 1}


def _unbuffered() -> api.KeyValue:
    return api.KeyValue(key="PYTHONUNBUFFERED", value="1")


def test_istio_validation_in_a_container_of_its_own(containerd: Containerd) -> None:
    """What Istio's injection makes where its CNI plugin applies the rules."""
    validate = [*arguments(snippet()), "--run-validation", "--skip-rule-apply", "--probe-timeout", "500ms"]
    with containerd.pod("validation") as pod:
        failing = pod.start("before", IMAGE, VALIDATION, args=validate)
        assert pod.finished(failing) == 126, pod.log("before")
        initialised(pod, "REDIRECT")
        passing = pod.start("istio-validation", IMAGE, VALIDATION, args=validate)
        assert pod.finished(passing) == 0, pod.log("istio-validation")


def test_an_init_container_that_runs_again_changes_nothing(containerd: Containerd) -> None:
    with containerd.pod("again") as pod:
        initialised(pod, "REDIRECT")
        again = pod.start("second", IMAGE, INIT, args=arguments(snippet()))
        assert pod.finished(again) == 0
        assert "in place" in pod.log("second").splitlines()[-1]


def test_the_reason_of_a_failure_is_where_a_kubelet_looks(containerd: Containerd, node: Node) -> None:
    message = node.directory / "termination-log"
    message.touch(0o666)
    # A kubelet makes the file for the container and mounts it at its terminationMessagePath.
    place = api.Mount(container_path="/dev/termination-log", host_path=str(message))
    with containerd.pod("failing") as pod:
        few = rights(0, 0, "NET_RAW", read_only=True)
        identity = pod.start("istio-init", IMAGE, few, args=arguments(snippet()), mounts=[place])
        assert pod.finished(identity) == 1
        assert "NET_ADMIN missing" in message.read_text()
        assert pod.log("istio-init").rstrip().endswith(message.read_text())


def test_a_container_is_explained_by_the_id_that_kubernetes_gives_it(containerd: Containerd) -> None:
    with containerd.pod("explained") as pod:
        initialised(pod, "TPROXY")
        app = pod.start("app", BASE, rights(1000, 1000), command=SERVE)
        for identity in (app, f"containerd://{app}"):
            code, text = explained(identity)
            assert code == 0, text
            assert "because ISTIO_OUTPUT rule" in text


def test_nothing_of_a_pod_is_left(containerd: Containerd, node: Node) -> None:
    before = _links(node)
    with containerd.pod("short") as pod:
        initialised(pod, "TPROXY")
        assert _links(node) != before
    assert _links(node) == before


def _links(node: Node) -> list[str]:
    command = [*node.entered(), "ip", "-brief", "link"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
