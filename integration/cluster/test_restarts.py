"""Agent, kubelet and containerd killed while pods start, and a node that boots again: no pod runs uncaptured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, PLAIN, leaves_nothing, rolled_out
from integration.cluster.test_cni import FIRST
from integration.cluster.workload import APP, container, dial_in, pod, sidecar

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


def running(node: KubernetesNode, namespace: str) -> int:
    """How many pods run."""
    phases = node.kubectl("-n", namespace, "get", "pods", "--output=jsonpath={.items[*].status.phase}")
    return phases.split().count("Running")


def assert_captured(node: KubernetesNode, namespace: str, names: list[str]) -> None:
    """Each pod gets ready, was captured before its app's first connection, and is."""
    for name in names:
        node.wait_for_pod(name, namespace)
    first = {name: node.kubectl("-n", namespace, "logs", name, "-c", "app").splitlines()[0] for name in names}
    assert {name: line for name, line in first.items() if line not in CAPTURED} == {}
    assert {name: dial_in(node, namespace, name).split()[0] for name in names} == dict.fromkeys(names, "15006")


@pytest.mark.usefixtures("plain")
def test_pods_that_start_while_agent_and_containerd_are_killed(node: KubernetesNode, namespace: str) -> None:
    names = [f"web-{number}" for number in range(MANY)]
    start(node, namespace, names)
    node.until(lambda: running(node, namespace) >= MANY // 10, "some pods to run")
    node.run("sh", "-c", "kill -9 $(pgrep -f '[i]stio-init cni agent')")
    node.until(lambda: running(node, namespace) >= MANY // 2, "half of the pods to run")
    node.restart("containerd")
    assert_captured(node, namespace, names)


@pytest.mark.usefixtures("plain")
def test_a_kubelet_that_is_killed(node: KubernetesNode, namespace: str) -> None:
    """Pods that run stay captured. Few start meanwhile: a kubelet starts slowly if many sandboxes are half made."""
    older, newer = ["web-0", "web-1"], ["web-2", "web-3"]
    start(node, namespace, older)
    assert_captured(node, namespace, older)
    start(node, namespace, newer)
    node.restart("kubelet")
    assert_captured(node, namespace, [*older, *newer])


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
