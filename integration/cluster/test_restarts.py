"""Agent, kubelet and containerd killed while pods start, and a node that boots again: no pod runs uncaptured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, PLAIN, leaves_nothing, rolled_out
from integration.cluster.test_cni import FIRST
from integration.cluster.workload import APP, answering, container, first_lines, pod, sidecar

MANY = 50
# The first line of an app whose first connection was captured: the sidecar answers, or is not there yet.
CAPTURED = {"15001 203.0.113.9 443", "ConnectionRefusedError"}


@pytest.fixture(scope="module")
def plain(node: KubernetesNode) -> Iterator[None]:
    """The objects of deploy/, applied as they are but for the image's name."""
    node.kubectl("apply", "--filename=-", text=PLAIN)
    rolled_out(node)
    yield
    node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def start(node: KubernetesNode, namespace: str, names: list[str]) -> None:
    apps = [container("app", FIRST + APP, 1000), sidecar()]
    node.apply("---\n".join(pod(name, containers=apps, annotations=INJECTED) for name in names), namespace)


def running(node: KubernetesNode, namespace: str) -> set[str]:
    """The pods that run."""
    pods = node.get("-n", namespace, "pods")["items"]
    return {each["metadata"]["name"] for each in pods if each["status"]["phase"] == "Running"}


def once_running(node: KubernetesNode, namespace: str, least: int) -> set[str]:
    """The pods that run, once there are so many."""
    node.until(lambda: len(running(node, namespace)) >= least, f"{least} pods to run")
    return running(node, namespace)


def assert_captured(node: KubernetesNode, namespace: str, names: list[str]) -> None:
    """Each pod gets ready, was captured before its app's first connection, and is."""
    node.wait_for_pods(names, namespace)
    first = first_lines(node, namespace, len(names))
    assert {name: line for name, line in first.items() if line not in CAPTURED} == {}
    assert answering(node, namespace) == dict.fromkeys(names, "15006")


def kill_agent(node: KubernetesNode) -> None:
    node.run("sh", "-c", "kill -9 $(pgrep -f '[i]stio-init cni agent')")


KILLS: list[tuple[str, Callable[[KubernetesNode], None]]] = [
    ("agent", kill_agent),
    ("containerd", lambda node: node.restart("containerd")),
    ("kubelet", lambda node: node.restart("kubelet")),
]


@pytest.mark.usefixtures("plain")
def test_pods_that_start_while_agent_containerd_and_kubelet_are_killed(node: KubernetesNode, namespace: str) -> None:
    """One after the other, each while pods start; further ones start before the next. None is missed, none is stuck."""
    names = [f"web-{number}" for number in range(MANY)]
    start(node, namespace, names)
    before: dict[str, set[str]] = {}
    for number, (what, kill) in enumerate(KILLS):
        before[what] = once_running(node, namespace, MANY // 10 + number * MANY // 5)
        kill(node)
    assert_captured(node, namespace, names)
    # Each hit pods that were still to start.
    assert all(len(each) < MANY for each in before.values()), before


@pytest.mark.usefixtures("plain")
def test_a_node_that_boots_again(node: KubernetesNode, namespace: str) -> None:
    """Its pods start before the agent does, and wait for it."""
    names = ["web-0", "web-1", "web-2"]
    start(node, namespace, names)
    assert_captured(node, namespace, names)
    node.reboot()
    node.until(lambda: all(restarted(node, namespace, name) for name in names), "the pods to run again")
    assert_captured(node, namespace, names)
    rolled_out(node)


def restarted(node: KubernetesNode, namespace: str, name: str) -> bool:
    """Whether each container of a pod runs again."""
    status = node.get("-n", namespace, "pod", name)["status"]
    return all(each["restartCount"] and "running" in each["state"] for each in status["containerStatuses"])
