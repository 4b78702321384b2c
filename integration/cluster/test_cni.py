"""The CNI plugin on a real node by the plain objects of deploy/, from before a pod's first process to their removal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, PLAIN, installed, leaves_nothing, rolled_out
from integration.cluster.workload import (
    APP,
    ELSEWHERE,
    address,
    answering,
    container,
    dial,
    dial_in,
    first_lines,
    pod,
    sidecar,
)

MANY = 50
# The app's first act is a connection; then it serves. Without capture it reaches nobody, and waits.
FIRST = """
import socket
try:
    print(socket.create_connection(("203.0.113.9", 443), 5).recv(100).decode(), flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"""


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
    """Each is captured before its first packet: the sidecar answers it, or refuses it since it is not there yet."""
    names = [f"web-{number}" for number in range(MANY)]
    apps = [container("app", FIRST + APP, 1000), sidecar()]
    node.apply("---\n".join(pod(name, containers=apps, annotations=INJECTED) for name in names), namespace)
    node.wait_for_pods(names, namespace)
    first = first_lines(node, namespace, MANY)
    assert set(first.values()) <= {"15001 203.0.113.9 443", "ConnectionRefusedError"}
    assert answering(node, namespace) == dict.fromkeys(names, "15006")


@pytest.mark.usefixtures("plain")
def test_pod_security_admits_a_captured_pod(node: KubernetesNode, namespace: str) -> None:
    """It needs no capability, so that the strictest level takes it."""
    node.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    node.apply(pod("web", annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"


@pytest.mark.usefixtures("plain")
def test_an_annotation_that_cannot_be_understood_is_an_event(node: KubernetesNode, namespace: str) -> None:
    wrong = {**INJECTED, "traffic.sidecar.istio.io/includeInboundPorts": "http"}
    node.apply(pod("web", annotations=wrong), namespace)
    node.until(
        lambda: "includeInboundPorts: 'http': not a port" in node.kubectl("-n", namespace, "describe", "pod", "web"),
        "the event",
    )
