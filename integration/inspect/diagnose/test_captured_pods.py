"""Pods that are captured by eBPF: healthy ones, and what can be wrong with them, on a node inside this machine."""

from __future__ import annotations

import posix
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.inspect.diagnose.planting import CAPTURING, USUAL, diagnose, names, running
from integration.kit.asking import ask
from integration.kit.ebpf_node import EbpfNode
from integration.kit.endpoints import User
from integration.kit.pod import PROXY, Pod, options_of
from integration.kit.residents import resident
from istio_init.kernel.ebpf import links, pins, pods
from istio_init.kernel.ebpf.installation import BPF_VARIABLE, CGROUP_VARIABLE
from istio_init.log import Log
from istio_init.model.rules import IPV4
from istio_init.runner import socket_capture


@pytest.fixture(scope="module")
def node() -> Iterator[EbpfNode]:
    with EbpfNode() as ebpf_node:
        posix.environ[CGROUP_VARIABLE], posix.environ[BPF_VARIABLE] = (
            ebpf_node.cgroup.as_posix().encode(),
            ebpf_node.bpf.encode(),
        )
        yield ebpf_node
        del posix.environ[CGROUP_VARIABLE], posix.environ[BPF_VARIABLE]


@pytest.fixture
def captured(node: EbpfNode) -> Iterator[Pod]:
    """A pod that is captured as usual."""
    with Pod(IPV4) as pod:
        capture(pod, node)
        yield pod
        pods.remove(node.again(), pods.cookie_of(pod.namespace.path))


def capture(pod: Pod, node: EbpfNode, flags: str = USUAL) -> None:
    chosen = options_of(f"--enable-ipv6 {flags} --capture-backend ebpf --network-namespace {pod.namespace.path}")
    socket_capture.add(chosen, node.again(), Log("none"))


def test_a_pod_that_is_well(captured: Pod) -> None:
    with running(captured):
        answer = diagnose(captured)
        text = " ".join(answer.output.split())
        assert answer.code == 0, answer.output
        assert text.startswith("HEALTHY: calls pass through the sidecar; captured by eBPF; the sidecar listens")
        assert "read from the node's maps (eBPF): istio-iptables -p 15001" in text
        assert diagnose(captured, "--to", "10.99.0.1:443").code == 0
        assert diagnose(captured, "--output", "json").document["backends"] == ["ebpf"]


def test_options_that_exclude(captured: Pod, node: EbpfNode) -> None:
    capture(captured, node, f"{USUAL} -o 5432-5437,9000")
    with running(captured):
        names(diagnose(captured), "the port is excluded: 5432-5437, 9000", "from the node's maps")
        assert diagnose(captured, "--to", "10.99.0.1:443").code == 0
        names(diagnose(captured, "--to", "10.99.0.1:5435"), "this call bypasses the sidecar")


def test_the_proxy_does_not_listen(captured: Pod) -> None:
    with resident(captured.namespace, "app", User(1000, 1000), tcp="8080"):
        names(diagnose(captured), "the proxy is not listening", "port 15001")


def test_the_app_runs_as_the_proxy(captured: Pod) -> None:
    with running(captured), resident(captured.namespace, "batch", PROXY):
        names(diagnose(captured), "the app runs as the proxy's uid 1337", "batch (process")


def test_a_program_that_is_detached(captured: Pod, node: EbpfNode) -> None:
    links.release(node.installation.path("links", "cgroup/connect4"))
    with running(captured):
        names(
            diagnose(captured),
            "a program of the capture by eBPF is not attached at the node's cgroup: cgroup/connect4",
            "FAULT: outbound calls go out directly",
        )


def test_a_pod_without_its_own_program(captured: Pod, node: EbpfNode) -> None:
    pins.unlink(node.installation.path("pods", str(pods.cookie_of(captured.namespace.path))))
    with running(captured):
        names(diagnose(captured), "sk_lookup) is not attached to the pod's network namespace", "inbound calls bypass")


MANIFEST = """
kind: Pod
metadata: {name: x}
spec:
  initContainers:
  - {name: istio-init, args: [istio-iptables, -i, '*', -b, '*', -d, '15090', --capture-backend, ebpf]}
"""


def test_a_pod_that_the_node_does_not_know(pod: Pod, node: EbpfNode, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(MANIFEST)
    path = ["--from-pod", str(tmp_path / "pod.yaml")]
    with running(pod):
        names(
            diagnose(pod, *path),
            "the pod is not in the node's map of captured pods (eBPF)",
            "--capture-backend ebpf is asked for by initContainer istio-init",
        )
    capture(pod, node)
    with running(pod):
        names(diagnose(pod, *path), "the pod's entry in the node's maps differs", "options differ")


def test_rules_beside_the_capture(captured: Pod) -> None:
    captured.apply(USUAL)
    with running(captured):
        names(diagnose(captured), "the rules were made twice, in different backends: legacy and ebpf", "both capture")


def test_a_bundle(captured: Pod, tmp_path: Path) -> None:
    with running(captured, tcp=CAPTURING):
        diagnose(captured, "--bundle", str(tmp_path / "bundle.tar.gz"))
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        text = archive.extractfile("diagnose/capture.txt").read().decode()  # type: ignore[union-attr]
    assert "in the map of captured pods = True\nsk_lookup attached = True\nprograms not attached = none\n" in text
    assert "captured = " in text


def test_the_pods_own_view(captured: Pod) -> None:
    """Without a place, the caller's namespace is what counts."""
    with running(captured):
        answer = ask(captured.namespace, "diagnose")
        assert (answer.code, "captured by eBPF" in answer.output) == (0, True)
