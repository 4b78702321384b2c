"""The CNI plugin on a real node: the plain DaemonSet and the chart, from install to uninstall."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from integration.cluster.conftest import CNI_IMAGE
from integration.cluster.node import KubernetesNode
from integration.cluster.workload import ELSEWHERE, address, dial, dial_in, pod
from integration.containers.engine import ROOT
from istio_init.cni.node.conflist import PLUGIN
from istio_init.options.annotations import STATUS

INJECTED = {STATUS: json.dumps({"initContainers": ["istio-validation"], "containers": ["istio-proxy"]})}
PLAIN = (ROOT / "deploy/istio-init-cni.yaml").read_text().replace("registry.example/istio-init-cni:0.1.0", CNI_IMAGE)
MANY = 12


def entry(node: KubernetesNode) -> bool:
    """Whether the plugin is in the network's list."""
    [network] = [path for path in (node.directory / "net.d").iterdir() if path.suffix == ".conflist"]
    return PLUGIN in [each["type"] for each in json.loads(network.read_text())["plugins"]]


def installed(node: KubernetesNode) -> bool:
    return entry(node) and (node.directory / "plugins" / PLUGIN).exists()


def rolled_out(node: KubernetesNode) -> None:
    """Wait until the DaemonSet's pod is ready."""
    done = node.completed("kubectl", "-n", "kube-system", "rollout", "status", "daemonset/istio-init-cni", "--timeout=240s")
    assert done.returncode == 0, node.kubectl("-n", "kube-system", "describe", "pod", "-l", LABEL)


LABEL = "app.kubernetes.io/name=istio-init-cni"


@pytest.fixture(scope="module")
def plain(node: KubernetesNode) -> Iterator[None]:
    """The objects of deploy/, applied as they are but for the image's name."""
    node.kubectl("apply", "--filename=-", text=PLAIN)
    rolled_out(node)
    yield
    node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
    node.until(lambda: not entry(node), "the plugin's entry to go")


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


def test_what_the_plain_objects_leave_behind(node: KubernetesNode) -> None:
    assert not entry(node)
    assert not list((node.directory / "plugins").glob(f"*{PLUGIN}*"))


def helm(node: KubernetesNode, verb: str, *arguments: str) -> str:
    chart = ROOT / "deploy/helm/istio-init-cni"
    return node.run("helm", verb, "istio-init-cni", str(chart), "--namespace", "kube-system", *arguments)


def test_a_release_from_install_to_uninstall(node: KubernetesNode, namespace: str) -> None:
    repository, _, tag = CNI_IMAGE.rpartition(":")
    helm(node, "install", f"--set=image.repository={repository}", f"--set=image.tag={tag}")
    try:
        rolled_out(node)
        assert installed(node)
        # What an operator set stays with --reuse-values.
        helm(node, "upgrade", "--reuse-values", "--set=logAsJson=false")
        rolled_out(node)
        values = yaml.safe_load(node.run("helm", "get", "values", "istio-init-cni", "--namespace=kube-system"))
        assert values["image"] == {"repository": repository, "tag": tag}
        node.apply(pod("web", annotations=INJECTED), namespace)
        node.wait_for_pod("web", namespace)
        assert dial_in(node, namespace, "web").startswith("15006")
    finally:
        node.run("helm", "uninstall", "istio-init-cni", "--namespace=kube-system", "--wait", "--timeout=60s")
    node.until(lambda: not entry(node), "the plugin's entry to go")


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("*.yaml")), ids=lambda path: path.name)
def test_the_api_server_takes_what_deploy_has(node: KubernetesNode, path: Path) -> None:
    text = path.read_text().replace("nodeName: the-node", "nodeName: node")
    done = node.completed("kubectl", "create", "--dry-run=server", "--warnings-as-errors", "--filename=-", text=text)
    assert done.returncode == 0, done.stderr.decode()
