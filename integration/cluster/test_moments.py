"""The plugin that comes before the network, goes at any moment, or would come twice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, entry, leaves_nothing, rolled_out
from integration.cluster.test_chart import CHART, IMAGE_VALUES, helm, release
from integration.cluster.workload import dial_in, pod

NETWORK = "10-bridge.conflist"


@contextlib.contextmanager
def without_network(node: KubernetesNode) -> Iterator[None]:
    """A node whose network plugin has not come yet, until it comes."""
    installed, kept = node.directory / "net.d" / NETWORK, node.directory / NETWORK
    installed.rename(kept)
    try:
        node.until(lambda: not is_ready(node), "the node to miss its network")
        yield
    finally:
        kept.rename(installed)


def is_ready(node: KubernetesNode) -> bool:
    conditions = node.get("node", "node")["status"]["conditions"]
    return [each["status"] for each in conditions if each["type"] == "Ready"] == ["True"]


def test_a_network_that_comes_late(node: KubernetesNode, namespace: str) -> None:
    with without_network(node):
        helm(node, "install", *IMAGE_VALUES)
        node.apply(pod("web", annotations=INJECTED), namespace)
        expected = "no network is configured here yet"
        log = ("-n=kube-system", "logs", "-l=app.kubernetes.io/name=istio-init-cni")
        node.until(
            lambda: expected in node.completed("kubectl", *log).stdout.decode(), "the agent to look for a network"
        )
    try:
        node.wait_for_pod("web", namespace)
        assert entry(node)
        assert dial_in(node, namespace, "web").startswith("15006")
    finally:
        node.run("helm", "uninstall", "istio-init-cni", "--namespace=kube-system", "--wait", "--timeout=60s")
    node.until(lambda: leaves_nothing(node), "the plugin to go")


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.5])
def test_an_uninstall_at_any_moment(node: KubernetesNode, seconds: float) -> None:
    """Before the agent's first line, while it installs, and once it is there."""
    helm(node, "install", *IMAGE_VALUES)
    time.sleep(seconds)
    node.run("helm", "uninstall", "istio-init-cni", "--namespace=kube-system", "--wait", "--timeout=60s")
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def test_a_second_release_is_refused_and_the_first_goes_on(node: KubernetesNode, namespace: str) -> None:
    """One node has one plugin: Helm finds the objects of the first."""
    with release(node):
        for where in ("kube-system", namespace):
            done = node.completed("helm", "install", "second", str(CHART), f"--namespace={where}", *IMAGE_VALUES)
            assert done.returncode == 1
            assert b"exists and cannot be imported into the current release" in done.stderr
        rolled_out(node)
        node.apply(pod("web", annotations=INJECTED), namespace)
        node.wait_for_pod("web", namespace)
        assert dial_in(node, namespace, "web").startswith("15006")
    node.until(lambda: leaves_nothing(node), "the plugin to go")
