"""The CNI plugin on the node: whether it is installed, and what deploy/ has for it."""

from __future__ import annotations

import json

from integration.cluster.images import CNI_IMAGE
from integration.cluster.node import PAUSE, KubernetesNode
from integration.containers.engine import ROOT
from istio_init.cni.node.conflist import PLUGIN
from istio_init.options.annotations import STATUS

NAME = "app.kubernetes.io/name"
LABEL = f"{NAME}=istio-init-cni"
INJECTED = {STATUS: json.dumps({"initContainers": ["istio-validation"], "containers": ["istio-proxy"]})}


def deployed(name: str) -> str:
    """A manifest of deploy/, for this node and its images."""
    text = (ROOT / "deploy" / name).read_text().replace("registry.example/istio-init-cni:0.1.0", CNI_IMAGE)
    return text.replace("registry.k8s.io/pause:3.10", PAUSE).replace("nodeName: the-node", "nodeName: node")


PLAIN = deployed("istio-init-cni.yaml")


def entry(node: KubernetesNode) -> bool:
    """Whether the plugin is in the network's list."""
    [network] = [path for path in (node.directory / "net.d").iterdir() if path.suffix == ".conflist"]
    return PLUGIN in [each["type"] for each in json.loads(network.read_text())["plugins"]]


def installed(node: KubernetesNode) -> bool:
    return entry(node) and (node.directory / "plugins" / PLUGIN).exists()


def rolled_out(node: KubernetesNode, name: str = "istio-init-cni") -> None:
    """Wait until a DaemonSet's pod is ready."""
    done = node.completed("kubectl", "-n", "kube-system", "rollout", "status", f"daemonset/{name}", "--timeout=240s")
    assert done.returncode == 0, node.kubectl("-n", "kube-system", "describe", "pod", "-l", f"{NAME}={name}")


def leaves_nothing(node: KubernetesNode) -> bool:
    """Whether neither the entry nor a program of the plugin is left."""
    return not entry(node) and not list((node.directory / "plugins").glob(f"*{PLUGIN}*"))
