"""Pods with `hostUsers: false` on a node whose runtime knows them: rules in namespaces that root does not own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from integration.cluster.build_runtime import runtime
from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, leaves_nothing
from integration.cluster.test_agent_functions import reasons
from integration.cluster.test_chart import release
from integration.cluster.test_init_container import init_container
from integration.cluster.workload import ELSEWHERE, ELSEWHERE_IPV6, dial, dial_in, pod


@pytest.fixture(scope="module")
def node(images: Path) -> Iterator[KubernetesNode]:
    """A node of its own, with the newer runtime."""
    with KubernetesNode(runtime()) as running:
        running.load(images.read_bytes())
        yield running


def apart(text: str) -> str:
    """A pod in a user namespace of its own."""
    manifest = yaml.safe_load(text)
    manifest["spec"]["hostUsers"] = False
    dumped: str = yaml.safe_dump(manifest)
    return dumped


def first_user(node: KubernetesNode, namespace: str, name: str) -> int:
    """The user of the node that a pod's root is."""
    uid_map = node.kubectl("-n", namespace, "exec", name, "-c", "app", "--", "cat", "/proc/self/uid_map")
    return int(uid_map.split()[1])


def test_the_init_container(node: KubernetesNode, namespace: str) -> None:
    node.apply(apart(pod("web", init=[init_container("--dual-stack")])), namespace)
    node.wait_for_pod("web", namespace)
    assert first_user(node, namespace, "web") >= 65536
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"
    assert dial(node, namespace, "web", ELSEWHERE_IPV6) == "15001 2001:db8::9 443"
    assert dial_in(node, namespace, "web").startswith("15006")


def test_the_plugin_and_repair(node: KubernetesNode, namespace: str) -> None:
    """A pod that is older than the plugin is mended in place; a newer one is captured from its start."""
    node.apply(apart(pod("early", annotations=INJECTED)), namespace)
    node.wait_for_pod("early", namespace)
    assert first_user(node, namespace, "early") >= 65536
    assert not dial_in(node, namespace, "early").startswith("15006")
    with release(node, "--set=agent.repair=mend"):
        node.apply(apart(pod("web", annotations=INJECTED)), namespace)
        node.wait_for_pod("web", namespace)
        assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"
        node.until(lambda: "Captured" in reasons(node, namespace, "early"), "the Event")
        assert dial_in(node, namespace, "early").startswith("15006")
    node.until(lambda: leaves_nothing(node), "the plugin to go")
