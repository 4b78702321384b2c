"""The init container of docs/deploy.md in pods of a real node: what a kubelet makes of it, and of its failures."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from integration.cluster.node import KubernetesNode
from integration.cluster.workload import ELSEWHERE, ELSEWHERE_IPV6, address, dial, dial_in, pod, status_of
from integration.containers.node import snippet


def init_container(*more: str) -> dict[str, Any]:
    """The container as docs/deploy.md has it, with further arguments."""
    [result] = yaml.safe_load(snippet())["initContainers"]
    result["args"] += more
    container: dict[str, Any] = result
    return container


def start(node: KubernetesNode, namespace: str, *more: str) -> None:
    node.apply(pod("web", init=[init_container(*more)]), namespace)
    node.wait_for_pod("web", namespace)


def test_a_pod_is_captured(node: KubernetesNode, namespace: str) -> None:
    start(node, namespace, "--dual-stack")
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"
    assert dial(node, namespace, "web", ELSEWHERE_IPV6) == "15001 2001:db8::9 443"
    assert dial_in(node, namespace, "web") == f"15006 {address(node, namespace, 'web')} 8080"


def test_an_excluded_range_is_left_alone(node: KubernetesNode, namespace: str) -> None:
    start(node, namespace, "-x=203.0.113.0/24,10.96.0.0/16")
    assert dial(node, namespace, "web", ("198.51.100.7", 80)) == "15001 198.51.100.7 80"
    # The API server answers itself, with a complaint: it speaks TLS.
    assert "15001" not in node.kubectl(
        "-n", namespace, "exec", "web", "-c", "app", "--", "python3", "-c",
        "import socket, ssl; c = ssl._create_unverified_context();"
        "s = c.wrap_socket(socket.create_connection(('10.96.0.1', 443), 5)); print(s.version())",
    )  # fmt: skip


FAILURES = {
    "a bad argument": ({}, ["-b", "80,http"], "--istio-inbound-ports (-b): '80,http': entry 'http': not a port"),
    "a missing capability": (
        {"add": ["NET_RAW"], "drop": ["ALL"]}, [], "NET_ADMIN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_told_where_the_documentation_says(node: KubernetesNode, namespace: str, failure: str) -> None:
    capabilities, more, why = FAILURES[failure]
    container = init_container(*more)
    if capabilities:
        container["securityContext"]["capabilities"] = capabilities
    text = yaml.safe_load(pod("web", init=[container]))
    text["spec"]["restartPolicy"] = "Never"
    node.apply(yaml.safe_dump(text), namespace)
    node.until(lambda: "terminated" in status_of(node, namespace, "web").get("state", {}), "the init container to end")
    # With restartPolicy Never there is no last state: it is the state.
    ended = status_of(node, namespace, "web")["state"]["terminated"]
    assert ended["exitCode"] in {1, 255}
    assert why in ended["message"]
    assert why in node.kubectl("-n", namespace, "describe", "pod", "web")
    assert why in node.kubectl("-n", namespace, "logs", "web", "-c", "istio-init")


def test_a_restarted_init_container_changes_nothing(node: KubernetesNode, namespace: str) -> None:
    """A sandbox that is made anew has a new namespace; a container that runs again in the old one finds its rules."""
    again = init_container()
    again["name"] = "istio-init-again"
    node.apply(pod("web", init=[init_container(), again]), namespace)
    node.wait_for_pod("web", namespace)
    assert "in place, nothing written" in node.kubectl("-n", namespace, "logs", "web", "-c", "istio-init-again")
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"
