"""The agent's functions by the chart's values: pods that were missed, and a node that takes no pods yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, leaves_nothing, rolled_out
from integration.cluster.test_chart import helm, release
from integration.cluster.workload import dial_in, pod

TAINT = "cni.istio.io/not-ready"
LABEL = "cni.istio.io/uninitialized"


def replicas(name: str) -> str:
    """A pod that comes again when it is evicted."""
    single = yaml.safe_load(pod(name, annotations=INJECTED, labels={"app": name}))
    template = {"metadata": single["metadata"], "spec": single["spec"]}
    del template["metadata"]["name"]
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
    return json.dumps({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name}, "spec": spec})


def names(node: KubernetesNode, namespace: str, app: str) -> list[str]:
    """The pods of a replica set, but for those that go."""
    pods = node.get("-n", namespace, "pods", f"-l=app={app}")["items"]
    return [each["metadata"]["name"] for each in pods if "deletionTimestamp" not in each["metadata"]]


def reasons(node: KubernetesNode, namespace: str, name: str) -> set[str]:
    """The reasons of a pod's Events."""
    events = node.get("-n", namespace, "events", f"--field-selector=involvedObject.name={name}")["items"]
    return {each["reason"] for each in events}


def is_captured(node: KubernetesNode, namespace: str, name: str) -> bool:
    return dial_in(node, namespace, name).startswith("15006")


def test_repair_of_each_kind(node: KubernetesNode, namespace: str) -> None:
    """Pods that are older than the plugin are reported, labelled, evicted, and mended in place."""
    with node.namespace(f"{namespace}-evicted") as evicting:
        node.apply(pod("early", annotations=INJECTED), namespace)
        node.apply(replicas("early"), evicting)
        node.wait_for_pod("early", namespace)
        node.until(lambda: len(names(node, evicting, "early")) == 1, "the replica")
        [replica] = names(node, evicting, "early")
        node.wait_for_pod(replica, evicting)
        with release(node, "--set=agent.repair=report"):
            node.until(lambda: "NotCaptured" in reasons(node, namespace, "early"), "the Event")
            switch(node, "label")
            node.until(
                lambda: LABEL in node.get("-n", namespace, "pod", "early")["metadata"].get("labels", {}), "the label"
            )
            assert not is_captured(node, namespace, "early")
            switch(node, "delete", f"--set=agent.repairExcept={{{namespace},kube-system}}")
            node.until(lambda: names(node, evicting, "early") not in ([], [replica]), "the next replica")
            [replica] = names(node, evicting, "early")
            node.wait_for_pod(replica, evicting)
            assert is_captured(node, evicting, replica)
            assert not is_captured(node, namespace, "early")
            switch(node, "mend")
            node.until(lambda: "Captured" in reasons(node, namespace, "early"), "the Event")
            assert is_captured(node, namespace, "early")
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def switch(node: KubernetesNode, mode: str, *values: str) -> None:
    helm(node, "upgrade", "--reuse-values", f"--set=agent.repair={mode}", *values)
    rolled_out(node)


@contextmanager
def tainted(node: KubernetesNode) -> Iterator[None]:
    node.kubectl("taint", "node", "node", f"{TAINT}=true:NoSchedule")
    try:
        yield
    finally:
        # Not there any more where all is well.
        node.completed("kubectl", "taint", "node", "node", f"{TAINT}-")


def test_a_tainted_node_takes_pods_once_the_plugin_works(node: KubernetesNode, namespace: str) -> None:
    with tainted(node):
        node.apply(pod("web", annotations=INJECTED), namespace)
        node.wait_for_pod("web", namespace, "PodScheduled=false")
        with release(node, f"--set=agent.untaint={TAINT}"):
            node.wait_for_pod("web", namespace)
            assert is_captured(node, namespace, "web")
            assert TAINT not in json.dumps(node.get("node", "node")["spec"])
    node.until(lambda: leaves_nothing(node), "the plugin to go")
