"""Pods of every mode on a real node: TPROXY, DNS capture, native sidecars; and what restarts leave of the rules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from integration.cluster.node import KubernetesNode
from integration.cluster.test_init_container import init_container
from integration.cluster.workload import (
    APP,
    DIAL,
    ELSEWHERE,
    QUERY,
    address,
    container,
    container_id,
    dial,
    dial_in,
    pod,
    sidecar,
)

ISTIO_INIT = str(Path(sys.executable).with_name("istio-init"))
# As Istio's injector has it for TPROXY.
ROOT_SIDECAR = {
    "runAsUser": 0,
    "runAsGroup": 1337,
    "runAsNonRoot": False,
    "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
}

# The program again, until the sidecar is there.
PATIENT = """
import time
for _ in range(100):
    try:
        exec(program)
        break
    except OSError:
        time.sleep(0.2)
"""


def with_arguments(*replaced: tuple[str, str], more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The init container of docs/deploy.md with other values, and with further arguments."""
    result = init_container(*more)
    values = dict(replaced)
    result["args"] = [values.get(each, each) for each in result["args"]]
    return result


def test_tproxy(node: KubernetesNode, namespace: str) -> None:
    init = with_arguments(("REDIRECT", "TPROXY"), more=("-g", "1337"))
    text = pod("web", init=[init], containers=[container("app", APP, 1000), sidecar(securityContext=ROOT_SIDECAR)])
    node.apply(text, namespace)
    node.wait_for_pod("web", namespace)
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"
    assert dial_in(node, namespace, "web") == f"15006 {address(node, namespace, 'web')} 8080"


def test_dns_capture_of_the_pods_own_nameserver(node: KubernetesNode, namespace: str) -> None:
    """The container's resolv.conf, which the kubelet wrote, decides; a look from the node reads it, too."""
    text = pod("web", init=[init_container("--redirect-dns")])
    node.apply(text, namespace)
    node.wait_for_pod("web", namespace)
    assert node.kubectl("-n", namespace, "exec", "web", "-c", "app", "--", "python3", "-c", QUERY).strip() == "15053"
    command = (ISTIO_INIT, "check", "--from-pod", "-", "--container")
    manifest = node.kubectl("-n", namespace, "get", "pod", "web", "--output=json")
    inspected = node.completed(*command, container_id(node, namespace, "web", "app"), text=manifest)
    assert (inspected.returncode, inspected.stdout[:8]) == (0, b"in place"), inspected.stderr


def test_a_native_sidecar_serves_init_containers(node: KubernetesNode, namespace: str) -> None:
    """The sidecar starts before the init containers behind it, which are captured as the app is."""
    early = container("early", f"program = {DIAL!r}\n{PATIENT}", 1000)
    early["command"] += [ELSEWHERE[0], str(ELSEWHERE[1])]
    init = [init_container(), sidecar(restartPolicy="Always"), early]
    node.apply(pod("web", init=init, containers=[container("app", APP, 1000)]), namespace)
    node.wait_for_pod("web", namespace)
    assert node.kubectl("-n", namespace, "logs", "web", "-c", "early").strip() == "15001 203.0.113.9 443"
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"


def restarts(node: KubernetesNode, namespace: str, name: str) -> int:
    """How often the sidecar of a pod was started anew."""
    status = node.get("-n", namespace, "pod", name)["status"]
    return sum(each["restartCount"] for each in status["containerStatuses"] if each["name"] == "istio-proxy")


def test_a_sidecar_that_is_killed_finds_its_rules(node: KubernetesNode, namespace: str) -> None:
    node.apply(pod("web", init=[init_container()]), namespace)
    node.wait_for_pod("web", namespace)
    node.run("ctr", "task", "kill", "--signal=SIGKILL", container_id(node, namespace, "web", "istio-proxy"))
    node.until(lambda: restarts(node, namespace, "web") == 1, "the sidecar's restart")
    node.wait_for_pod("web", namespace)
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"


def test_a_new_sandbox_is_captured_again(node: KubernetesNode, namespace: str) -> None:
    """A sandbox that dies is made anew, with another network namespace: its init containers run again."""
    node.apply(pod("web", init=[init_container()]), namespace)
    node.wait_for_pod("web", namespace)
    before = address(node, namespace, "web")
    [sandbox] = node.run("ctr", "container", "list", "--quiet", f'labels."io.kubernetes.pod.namespace"=={namespace},'
                         'labels."io.cri-containerd.kind"==sandbox').split()  # fmt: skip
    node.run("ctr", "task", "kill", "--signal=SIGKILL", sandbox)
    node.until(lambda: address(node, namespace, "web") not in {"", before}, "the new sandbox")
    node.wait_for_pod("web", namespace)
    assert dial(node, namespace, "web", ELSEWHERE) == "15001 203.0.113.9 443"


def test_pod_security_refuses_the_init_container(node: KubernetesNode, namespace: str) -> None:
    """Its capabilities are beyond the level baseline; the CNI plugin is for such namespaces."""
    node.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=baseline")
    refused = node.completed("kubectl", "-n", namespace, "apply", "-f", "-", text=pod("web", init=[init_container()]))
    assert refused.returncode != 0
    assert b"NET_ADMIN" in refused.stderr


def test_the_manifest_of_a_pod_is_read_as_the_api_returns_it(node: KubernetesNode, namespace: str) -> None:
    node.apply(pod("web", init=[init_container()]), namespace)
    returned = yaml.safe_dump(node.get("-n", namespace, "pod", "web"))
    printed = node.run(ISTIO_INIT, "explain", "--from-pod", "-", "--outbound",
                       "--to=203.0.113.9:443", text=returned)  # fmt: skip
    assert printed.splitlines()[-1].startswith("Verdict: captured")
