"""The Helm chart on a real node, and the API server's opinion of everything in deploy/."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from integration.cluster.images import CNI_IMAGE
from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, deployed, installed, leaves_nothing, rolled_out
from integration.cluster.workload import answering, dial_in, pod
from integration.containers.engine import ROOT

UPGRADES = 3
CHART = ROOT / "deploy/helm/istio-init-cni"
REPOSITORY, _, TAG = CNI_IMAGE.rpartition(":")
IMAGE_VALUES = (f"--set=image.repository={REPOSITORY}", f"--set=image.tag={TAG}")


def helm(node: KubernetesNode, verb: str, *arguments: str) -> str:
    return node.run("helm", verb, "istio-init-cni", str(CHART), "--namespace", "kube-system", *arguments)


@contextlib.contextmanager
def release(node: KubernetesNode, *values: str) -> Iterator[None]:
    """The chart installed with the image under test, until it is uninstalled."""
    helm(node, "install", *IMAGE_VALUES, *values)
    try:
        rolled_out(node)
        yield
    finally:
        node.run("helm", "uninstall", "istio-init-cni", "--namespace=kube-system", "--wait", "--timeout=60s")


def test_a_release_from_install_to_uninstall(node: KubernetesNode, namespace: str) -> None:
    with release(node):
        assert installed(node)
        # What an operator set stays with --reuse-values.
        helm(node, "upgrade", "--reuse-values", "--set=logAsJson=false")
        rolled_out(node)
        values = yaml.safe_load(node.run("helm", "get", "values", "istio-init-cni", "--namespace=kube-system"))
        assert values["image"] == {"repository": REPOSITORY, "tag": TAG}
        node.apply(pod("web", annotations=INJECTED), namespace)
        node.wait_for_pod("web", namespace)
        assert dial_in(node, namespace, "web").startswith("15006")
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def test_pods_that_start_during_an_upgrade_are_captured(node: KubernetesNode, namespace: str) -> None:
    """Again and again the DaemonSet's pod is replaced while pods start; with the release all goes."""
    names = [f"web-{number}" for number in range(UPGRADES * 2)]
    with release(node):
        for number in range(UPGRADES):
            helm(node, "upgrade", "--reuse-values", f"--set-string=podAnnotations.upgrade={number}")
            for name in names[2 * number : 2 * number + 2]:
                node.apply(pod(name, annotations=INJECTED), namespace)
            rolled_out(node)
            assert installed(node)
        node.wait_for_pods(names, namespace)
        assert answering(node, namespace) == dict.fromkeys(names, "15006")
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def test_a_changed_setting_counts_for_new_pods(node: KubernetesNode, namespace: str) -> None:
    """And with onExit keep, nothing is left once deploy/cni-uninstall.yaml was applied."""
    with release(node, "--set=onExit=keep"):
        node.apply(pod("before", annotations=INJECTED), namespace)
        node.wait_for_pod("before", namespace)
        helm(node, "upgrade", "--reuse-values", f"--set=plugin.exclude_namespaces={{kube-system,{namespace}}}")
        rolled_out(node)
        node.until(lambda: namespace in (node.directory / "net.d/10-bridge.conflist").read_text(), "the new setting")
        node.apply(pod("behind", annotations=INJECTED), namespace)
        node.wait_for_pod("behind", namespace)
        assert dial_in(node, namespace, "before").startswith("15006")
        assert not dial_in(node, namespace, "behind").startswith("15006")
    assert installed(node)
    uninstall = deployed("cni-uninstall.yaml")
    node.apply(uninstall, "kube-system")
    rolled_out(node, "istio-init-cni-uninstall")
    assert leaves_nothing(node)
    node.kubectl("delete", "--filename=-", "--wait=true", text=uninstall)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("*.yaml")), ids=lambda path: path.name)
def test_the_api_server_takes_what_deploy_has(node: KubernetesNode, path: Path) -> None:
    text = path.read_text().replace("nodeName: the-node", "nodeName: node")
    done = node.completed("kubectl", "create", "--dry-run=server", "--warnings-as-errors", "--filename=-", text=text)
    assert done.returncode == 0, done.stderr.decode()
