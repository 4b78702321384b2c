"""Capture by eBPF on a real node, by the chart: pods from their first connection on, many at once, without an agent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from integration.cluster.node import PAUSE, KubernetesNode
from integration.cluster.plugin import INJECTED, rolled_out
from integration.cluster.test_agent import metrics
from integration.cluster.test_chart import UPGRADES, helm, release
from integration.cluster.workload import ELSEWHERE, container, dial, dial_in, pod, sidecar, status_of

MANY = 50
# Of an init container, which runs before any proxy: whether its first connection is refused by the pod's own loopback.
FIRST = f"""
import errno, socket, sys
dialling = socket.socket()
dialling.settimeout(5)
sys.exit(dialling.connect_ex({ELSEWHERE}) != errno.ECONNREFUSED)
"""
AT_ELSEWHERE = f"15001 {ELSEWHERE[0]} {ELSEWHERE[1]}"
# An app that calls without a pause of over 20 ms once the sidecar listens, counts, and ends at the first other answer.
CALLER = f"""
import socket, sys, time
calls = 0
while True:
    try:
        with socket.create_connection({ELSEWHERE}, 5) as connection:
            connection.sendall(b"hello")
            answer = connection.recv(200).decode()
    except ConnectionRefusedError:
        if calls:
            raise
    else:
        calls += 1
        print(calls if answer == {AT_ELSEWHERE!r} else f"{{calls}}: {{answer}}", flush=True)
        if answer != {AT_ELSEWHERE!r}:
            sys.exit(1)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module", autouse=True)
def chart(node: KubernetesNode) -> Iterator[None]:
    # Debian's containerd is older than 1.7: its profile allows bpf(2) with SYS_ADMIN only.
    with release(node, "--set=captureBackend=ebpf", "--set=seccompProfile.type=Unconfined"):
        yield


def metric(node: KubernetesNode, name: str) -> float:
    """The value of one of the agent's metrics."""
    values = re.findall(rf"^istio_init_cni_{re.escape(name)} (\S+)$", metrics(node), re.MULTILINE)
    assert values, name
    return float(values[0])


def test_a_pod_is_captured_from_its_first_connection_on(node: KubernetesNode, namespace: str) -> None:
    before = metric(node, "ebpf_pods")
    node.apply(pod("web", init=[container("first", FIRST, 1000)], annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)
    assert dial(node, namespace, "web", ELSEWHERE) == AT_ELSEWHERE
    assert dial_in(node, namespace, "web").startswith("15006")
    assert metric(node, "ebpf_pods") == before + 1
    assert metric(node, "ebpf_missing_programs") == 0
    node.kubectl("-n", namespace, "delete", "pod", "web", "--wait=true")
    node.until(lambda: metric(node, "ebpf_pods") == before, "the pod's entry to go")


def test_many_pods_that_start_at_once_are_captured(node: KubernetesNode, namespace: str) -> None:
    """Each has an init container that fails if its connection is not captured."""
    idle = {"name": "istio-proxy", "image": PAUSE, "securityContext": {"runAsUser": 1337}}
    template = yaml.safe_load(
        pod("many", init=[container("first", FIRST, 1000)], containers=[idle], annotations=INJECTED)
    )
    template["metadata"]["labels"] = {"app": "many"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "many"},
        "spec": {
            "replicas": MANY,
            "progressDeadlineSeconds": 900,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": template["metadata"], "spec": template["spec"]},
        },
    }
    del template["metadata"]["name"]
    node.apply(json.dumps(deployment), namespace)
    node.kubectl("-n", namespace, "rollout", "status", "deployment/many", "--timeout=900s")
    assert metric(node, "ebpf_pods") >= MANY
    pods = node.get("-n", namespace, "pods")["items"]
    restarts = [each["status"]["initContainerStatuses"][0]["restartCount"] for each in pods]
    assert restarts == [0] * MANY


def test_calls_are_captured_while_the_agent_is_upgraded(node: KubernetesNode, namespace: str) -> None:
    containers = [container("app", CALLER, 1000), sidecar()]
    node.apply(pod("web", containers=containers, annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)

    def calls() -> int:
        return int(node.kubectl("-n", namespace, "logs", "web", "-c", "app", "--tail=1") or 0)

    def wait_for_calls() -> None:
        before = calls()
        node.until(lambda: calls() > before + 10, "further calls")

    for number in range(UPGRADES):
        wait_for_calls()
        helm(node, "upgrade", "--reuse-values", f"--set-string=podAnnotations.upgrade={number}")
        rolled_out(node)
    wait_for_calls()
    assert status_of(node, namespace, "web", "containerStatuses")["restartCount"] == 0


def test_without_its_agent_a_pod_stays_captured(node: KubernetesNode, namespace: str) -> None:
    node.apply(pod("web", annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)
    # In the node's own process namespace; the kubelet starts another one.
    node.run("sh", "-c", "kill -9 $(pgrep -f '[i]stio-init cni agent')")
    assert dial(node, namespace, "web", ELSEWHERE) == AT_ELSEWHERE
    node.apply(
        pod(
            "later",
            containers=[container("app", "import time; time.sleep(600)", 1000), sidecar()],
            annotations=INJECTED,
        ),
        namespace,
    )
    node.wait_for_pod("later", namespace)
    assert dial(node, namespace, "later", ELSEWHERE) == AT_ELSEWHERE


def test_pins_that_root_removes_are_restored(node: KubernetesNode, namespace: str) -> None:
    node.apply(pod("web", annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)
    node.until(lambda: metric(node, "ebpf_pods") >= 1, "the agent to be there")
    before = metric(node, "ebpf_restored_total")
    node.run("sh", "-c", "sleep 5; rm -r /sys/fs/bpf/istio-init/v1/links")
    assert dial(node, namespace, "web", ELSEWHERE) == AT_ELSEWHERE
    node.until(lambda: metric(node, "ebpf_restored_total") >= before + 6, "the pins")
    assert node.run("ls", "/sys/fs/bpf/istio-init/v1/links").split()
    assert dial(node, namespace, "web", ELSEWHERE) == AT_ELSEWHERE
