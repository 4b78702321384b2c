"""Pods by name, and by a process, from a runtime's socket: containerd's answers, and CRI-O's, which say less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.inspect.diagnose.planting import USUAL, names, running
from integration.kit.asking import Answer, ask
from integration.kit.cri_runtime import CriRuntime, cri_runtime
from integration.kit.pod import APP, Pod
from integration.kit.residents import resident

INIT = ["pilot-agent", "istio-iptables", "-i", "*", "-b", "*", "-d", "15090,15021,15020", "--enable-ipv6"]


@pytest.fixture(params=[False, True], ids=["containerd", "CRI-O"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path, pod: Pod) -> Iterator[CriRuntime]:
    with cri_runtime(tmp_path / "cri.sock") as served:
        served.without_process = request.param
        served.sandboxes["one"] = ("reviews", "default", pod.namespace.path)
        served.processes["one", "istio-init"] = (INIT, ["TOKEN=s3cret"])
        served.processes["one", "reviews"] = (["serve"], [])
        yield served


def diagnosis(pod: Pod, tmp_path: Path, *words: str) -> Answer:
    return ask(pod.peer, "diagnose", *words, "--cri-socket", f"unix://{tmp_path}/cri.sock")


def test_a_pod_by_name(pod: Pod, runtime: CriRuntime, tmp_path: Path) -> None:
    pod.apply(USUAL)
    with running(pod), resident(pod.namespace, "web", APP) as process:
        for words in (["reviews"], ["default/reviews"], ["--pid", str(process)]):
            answer = diagnosis(pod, tmp_path, *words)
            assert answer.code == 0, answer.output
            assert "the init container's arguments, from the runtime" in answer.output
        runtime.processes["one", "istio-init"] = ([*INIT, "-o", "5432"], [])
        names(diagnosis(pod, tmp_path, "reviews"), "the rules were changed", "--dport 5432")
    other = diagnosis(pod, tmp_path, "other/reviews")
    assert other.output.startswith("CANNOT KNOW: POD: 'other/reviews': no running pod of that name")


def test_a_pod_without_a_container_yet(pod: Pod, runtime: CriRuntime, tmp_path: Path) -> None:
    runtime.processes.clear()
    answer = diagnosis(pod, tmp_path, "reviews")
    if runtime.without_process:
        assert (answer.code, "does not name its network namespace; use --pid" in answer.output) == (4, True)
    else:
        names(answer, "no process and no socket is in this network namespace")


def test_a_path_that_this_container_does_not_have(pod: Pod, tmp_path: Path) -> None:
    """In a container for debugging, the node's /run/netns is somewhere else; its processes are all there."""
    pod.apply(USUAL)
    with running(pod), resident(pod.namespace, "pause") as process, cri_runtime(tmp_path / "cri.sock") as served:
        served.sandboxes["one"] = ("reviews", "default", "/run/netns/cni-of-the-node")
        served.process_ids["one"] = process
        answer = diagnosis(pod, tmp_path, "reviews")
        assert answer.code == 0, answer.output


def test_no_place_at_all(pod: Pod) -> None:
    with resident(pod.namespace, "sshd", tcp="22"):
        answer = ask(pod.namespace, "diagnose")
    names(answer, "no pod was named, and no sidecar runs here", "name the pod: istio-init diagnose NAMESPACE/POD")
