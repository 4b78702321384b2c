"""Repair by deploy/cni-repair.yaml of a pod that is older than the plugin, and debug containers, on a real node."""

from __future__ import annotations

import json

from integration.cluster.images import CNI_IMAGE
from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, PLAIN, deployed, leaves_nothing, rolled_out
from integration.cluster.workload import ELSEWHERE, dial, dial_in, pod


def repair(node: KubernetesNode, mode: str) -> tuple[str, str]:
    """Run the Job to its end; returns how it ended, Complete or Failed, and its log."""
    text = deployed("cni-repair.yaml").replace("--dry-run", mode)
    name = node.kubectl("create", "--filename=-", "--output=name", text=text).strip()
    ends = ("Complete", "Failed")

    def end() -> str:
        conditions = node.get("-n", "kube-system", name)["status"].get("conditions", [])
        return next((each["type"] for each in conditions if each["type"] in ends), "")

    node.until(lambda: bool(end()), "the Job to end")
    return end(), node.kubectl("-n", "kube-system", "logs", name)


def test_a_pod_from_before_the_plugin_is_captured_by_the_job(node: KubernetesNode, namespace: str) -> None:
    """Beside the DaemonSet, which leaves the Job's pod alone."""
    node.apply(pod("early", annotations=INJECTED), namespace)
    node.wait_for_pod("early", namespace)
    node.kubectl("apply", "--filename=-", text=PLAIN)
    try:
        rolled_out(node)
        assert not dial_in(node, namespace, "early").startswith("15006")
        ended, log = repair(node, "--dry-run")
        assert (ended, "--fix captures 1" in log) == ("Failed", True), log
        assert not dial_in(node, namespace, "early").startswith("15006")
        ended, log = repair(node, "--fix")
        assert ended == "Complete", log
        assert dial_in(node, namespace, "early").startswith("15006")
        assert dial(node, namespace, "early", ELSEWHERE) == "15001 203.0.113.9 443"
    finally:
        node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def test_a_debug_container_looks_at_the_pod(node: KubernetesNode, namespace: str) -> None:
    """As docs/deploy.md has it: the verbs in the pod's own network namespace."""
    node.apply(pod("web"), namespace)
    node.wait_for_pod("web", namespace)
    verbs = {"show": 0, "doctor": 0}
    for verb in verbs:
        node.kubectl(
            "-n", namespace, "debug", "web", "--profile=netadmin", f"--image={CNI_IMAGE}", f"--container={verb}",
            "--image-pull-policy=IfNotPresent", "--", "/usr/local/bin/istio-init", verb,
        )  # fmt: skip

    def ended() -> dict[str, int]:
        statuses = json.loads(node.kubectl("-n", namespace, "get", "pod", "web", "--output=json"))["status"]
        return {
            each["name"]: each["state"]["terminated"]["exitCode"]
            for each in statuses.get("ephemeralContainerStatuses", [])
            if "terminated" in each["state"]
        }

    node.until(lambda: len(ended()) == len(verbs), "the verbs to end")
    logs = {verb: node.kubectl("-n", namespace, "logs", "web", "-c", verb) for verb in verbs}
    assert ended() == verbs, logs
    assert logs["show"].startswith("absent")
