"""The CNI plugin on the node: whether it is installed, and what deploy/ has for it."""

from __future__ import annotations

import json

from integration.cluster.conftest import CNI_IMAGE
from integration.cluster.node import KubernetesNode
from integration.containers.engine import ROOT
from istio_init.cni.node.conflist import PLUGIN
from istio_init.options.annotations import STATUS

INJECTED = {STATUS: json.dumps({"initContainers": ["istio-validation"], "containers": ["istio-proxy"]})}
PLAIN = (ROOT / "deploy/istio-init-cni.yaml").read_text().replace("registry.example/istio-init-cni:0.1.0", CNI_IMAGE)


def entry(node: KubernetesNode) -> bool:
    """Whether the plugin is in the network's list."""
    [network] = [path for path in (node.directory / "net.d").iterdir() if path.suffix == ".conflist"]
    return PLUGIN in [each["type"] for each in json.loads(network.read_text())["plugins"]]


def installed(node: KubernetesNode) -> bool:
    return entry(node) and (node.directory / "plugins" / PLUGIN).exists()


def rolled_out(node: KubernetesNode) -> None:
    """Wait until the DaemonSet's pod is ready."""
    done = node.completed(
        "kubectl", "-n", "kube-system", "rollout", "status", "daemonset/istio-init-cni", "--timeout=240s"
    )
    assert done.returncode == 0, node.kubectl("-n", "kube-system", "describe", "pod", "-l", LABEL)


LABEL = "app.kubernetes.io/name=istio-init-cni"


def leaves_nothing(node: KubernetesNode) -> bool:
    """Whether neither the entry nor a program of the plugin is left."""
    return not entry(node) and not list((node.directory / "plugins").glob(f"*{PLUGIN}*"))
