"""Istio's own control plane on a real node, with our image for its pods, then with our plugin in place of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from integration.cluster.mesh import ASK, STRICT, app, ask, control_plane, istiod
from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import PLAIN, leaves_nothing, rolled_out
from integration.cluster.workload import address
from integration.containers.conftest import IMAGE

# What becomes of a connection without a certificate where mutual TLS is asked for.
REFUSED = {"ConnectionResetError", "RemoteDisconnected"}
NEXT = "localhost/istio-init:next"
# Who spoke at the other end of mutual TLS, which the proxy tells the app.
IDENTITY = "x-forwarded-client-cert"

DNS_CAPTURE = "meshConfig.defaultConfig.proxyMetadata.ISTIO_META_DNS_CAPTURE"
NOWHERE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: nowhere}
spec:
  hosts: [nowhere.example]
  addresses: [240.240.1.1]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
"""


@pytest.fixture(scope="module")
def mesh(node: KubernetesNode) -> Iterator[None]:
    with control_plane(node):
        yield


@pytest.fixture
def strict(node: KubernetesNode, mesh: None, namespace: str) -> str:
    """A namespace whose pods are injected, and take nothing but mutual TLS."""
    node.kubectl("label", "namespace", namespace, "istio-injection=enabled")
    node.apply(STRICT, namespace)
    return namespace


@pytest.fixture
def plugin(node: KubernetesNode, mesh: None) -> Iterator[None]:
    """Our DaemonSet, and an injector that leaves the rules to a CNI plugin."""
    node.kubectl("apply", "--filename=-", text=PLAIN)
    rolled_out(node)
    istiod(node, "upgrade", "", "--reuse-values", "--set=pilot.cni.enabled=true")
    yield
    istiod(node, "upgrade", "", "--reuse-values", "--set=pilot.cni.enabled=false")
    node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def start(node: KubernetesNode, namespace: str, *names: str, **annotations: str) -> None:
    for name in names:
        node.kubectl("apply", "--filename=-", text=app(name, namespace, **annotations))
    for name in names:
        node.wait_for_pod(name, namespace)


def talk(node: KubernetesNode, namespace: str, name: str, to: str) -> str:
    """Whom the app of a pod is taken for by the app that it asks, once the proxies know each other."""
    answers: list[str] = []

    def answered() -> bool:
        answers.append(ask(node, namespace, name, to))
        return answers[-1].startswith("200 ")

    node.until(answered, f"{to} to answer {name}")
    headers: dict[str, str] = json.loads(answers[-1].removeprefix("200 "))
    return headers.get(IDENTITY, "")


def plain_text(node: KubernetesNode, namespace: str) -> str:
    """What the node itself, which has no certificate, is answered at the server's app port: the error's name."""
    return node.run("python3", "-c", ASK, address(node, namespace, "server"), "8080").strip()


def init_container(node: KubernetesNode, namespace: str, name: str) -> dict[str, Any]:
    """The first init container of a pod, as the injector made it."""
    container: dict[str, Any] = node.get("-n", namespace, "pod", name)["spec"]["initContainers"][0]
    return container


def test_mutual_tls_between_pods_with_the_image(node: KubernetesNode, strict: str) -> None:
    """Probes included: the kubelet's reach the app by the proxy's agent, at a port that is not captured."""
    start(node, strict, "client", "server")
    container = init_container(node, strict, "client")
    assert (container["name"], container["image"]) == ("istio-init", IMAGE)
    assert "applied" in node.kubectl("-n", strict, "logs", "client", "-c", "istio-init")
    assert f"ns/{strict}/sa/default" in talk(node, strict, "client", "server")
    assert plain_text(node, strict) in REFUSED


def test_tproxy_mesh(node: KubernetesNode, strict: str) -> None:
    start(node, strict, "client", "server", **{"sidecar.istio.io/interceptionMode": "TPROXY"})
    assert f"ns/{strict}/sa/default" in talk(node, strict, "client", "server")
    assert plain_text(node, strict) in REFUSED


def test_another_image_under_a_running_mesh(node: KubernetesNode, strict: str) -> None:
    start(node, strict, "client", "server")
    assert talk(node, strict, "client", "server")
    node.run("ctr", "-n", "k8s.io", "images", "tag", IMAGE, NEXT)
    istiod(node, "upgrade", "", "--reuse-values", f"--set=global.proxy_init.image={NEXT}")
    start(node, strict, "newer")
    assert init_container(node, strict, "newer")["image"] == NEXT
    # Old and new talk in both directions.
    for client, server in (("client", "newer"), ("newer", "server"), ("client", "server")):
        assert f"ns/{strict}/sa/default" in talk(node, strict, client, server)
    istiod(node, "upgrade", "", "--reuse-values", f"--set=global.proxy_init.image={IMAGE}")


@pytest.mark.usefixtures("plugin")
def test_mutual_tls_between_pods_of_the_plugin(node: KubernetesNode, strict: str) -> None:
    start(node, strict, "client", "server")
    container = init_container(node, strict, "client")
    assert (container["name"], container["image"]) == ("istio-validation", IMAGE)
    assert "--run-validation" in container["args"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert f"ns/{strict}/sa/default" in talk(node, strict, "client", "server")
    assert plain_text(node, strict) in REFUSED


@pytest.mark.usefixtures("plugin")
def test_dns_is_captured_by_a_setting_of_the_whole_mesh(node: KubernetesNode, strict: str) -> None:
    """It is in no annotation: the plugin knows it from the sidecar's variables, and the proxy's agent answers."""
    istiod(node, "upgrade", "", "--reuse-values", f"--set-string={DNS_CAPTURE}=true")
    node.apply(NOWHERE, strict)
    start(node, strict, "client")
    node.until(lambda: look_up(node, strict, "client") == "240.240.1.1", "the proxy's agent to know the name")
    istiod(node, "upgrade", "", "--reuse-values", f"--set-string={DNS_CAPTURE}=null")


def look_up(node: KubernetesNode, namespace: str, name: str) -> str:
    """The address that an app gets for a name that no DNS server knows; empty where it gets none."""
    program = "import socket; print(socket.gethostbyname('nowhere.example'))"
    done = node.completed("kubectl", "-n", namespace, "exec", name, "-c", "app", "--", "python3", "-c", program)
    return done.stdout.decode().strip()


def test_without_a_plugin_the_validation_keeps_the_pod_from_starting(node: KubernetesNode, strict: str) -> None:
    istiod(node, "upgrade", "", "--reuse-values", "--set=pilot.cni.enabled=true")
    node.kubectl("apply", "--filename=-", text=app("web", strict))
    node.until(lambda: "lastState" in first_status(node, strict), "the validation to end")
    ended = first_status(node, strict)["lastState"]["terminated"]
    assert ended["exitCode"] == 126
    istiod(node, "upgrade", "", "--reuse-values", "--set=pilot.cni.enabled=false")


def first_status(node: KubernetesNode, namespace: str) -> dict[str, Any]:
    """The status of a pod's first init container; empty where it has none yet."""
    statuses = node.get("-n", namespace, "pod", "web")["status"].get("initContainerStatuses", [{}])
    status: dict[str, Any] = statuses[0]
    return status if status.get("lastState") else {}
