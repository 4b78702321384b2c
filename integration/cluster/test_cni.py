"""The CNI plugin on a real node by the plain objects of deploy/, from before a pod's first process to their removal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, PLAIN, installed, leaves_nothing, rolled_out
from integration.cluster.workload import ELSEWHERE, address, dial, dial_in, pod

MANY = 12


@pytest.fixture(scope="module")
def plain(node: KubernetesNode) -> Iterator[None]:
    """The objects of deploy/, applied as they are but for the image's name."""
    node.kubectl("apply", "--filename=-", text=PLAIN)
    rolled_out(node)
    yield
    node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
    node.until(lambda: leaves_nothing(node), "the plugin to go")


@pytest.mark.usefixtures("plain")
def test_a_pod_is_captured_before_its_first_process(node: KubernetesNode, namespace: str) -> None:
    assert installed(node)
    node.apply(pod("web", annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"
    assert dial_in(node, namespace, "web") == f"15006 {address(node, namespace, 'web')} 8080"


@pytest.mark.usefixtures("plain")
def test_a_pod_without_a_sidecar_is_left_alone(node: KubernetesNode, namespace: str) -> None:
    node.apply(pod("plain"), namespace)
    node.wait_for_pod("plain", namespace)
    assert not dial_in(node, namespace, "plain").startswith("15006")


@pytest.mark.usefixtures("plain")
def test_many_at_once(node: KubernetesNode, namespace: str) -> None:
    node.apply("---\n".join(pod(f"web-{number}", annotations=INJECTED) for number in range(MANY)), namespace)
    for number in range(MANY):
        node.wait_for_pod(f"web-{number}", namespace)
    assert {dial_in(node, namespace, f"web-{number}").split()[0] for number in range(MANY)} == {"15006"}


@pytest.mark.usefixtures("plain")
def test_an_annotation_that_cannot_be_understood_is_an_event(node: KubernetesNode, namespace: str) -> None:
    wrong = {**INJECTED, "traffic.sidecar.istio.io/includeInboundPorts": "http"}
    node.apply(pod("web", annotations=wrong), namespace)
    node.until(
        lambda: "includeInboundPorts: 'http': not a port" in node.kubectl("-n", namespace, "describe", "pod", "web"),
        "the event",
    )
