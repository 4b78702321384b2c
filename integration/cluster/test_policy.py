"""`istio-init inject --policy` on a real API server: a pod gets what its manifest would get in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from integration.cluster.node import KubernetesNode
from istio_init.inject.containers import InitSpec
from istio_init.inject.injector import inject
from istio_init.inject.policy import CAPTURE, IMAGE_ALONE, printed

VERSION, IMAGE = "1.34", "registry.example/istio-init:0.1.0"
TRAFFIC = "traffic.sidecar.istio.io/"
APP, WAIT = {"name": "app", "image": "app"}, {"name": "wait", "image": "wait"}
PROXY = {"name": "istio-proxy", "image": "proxy", "securityContext": {"runAsUser": 1234, "runAsGroup": 4321}}
NATIVE = {"name": "istio-proxy", "image": "proxy", "restartPolicy": "Always"}
ANNOTATED = {
    f"{TRAFFIC}includeOutboundIPRanges": "10.9.0.0/16",
    f"{TRAFFIC}excludeOutboundIPRanges": "10.9.1.0/24",
    f"{TRAFFIC}includeInboundPorts": "80,8080",
    f"{TRAFFIC}excludeInboundPorts": "8081",
    f"{TRAFFIC}includeOutboundPorts": "443",
    f"{TRAFFIC}excludeOutboundPorts": "25",
    f"{TRAFFIC}excludeInterfaces": "net1",
    f"{TRAFFIC}kubevirtInterfaces": "old0",
    "istio.io/reroute-virtual-interfaces": "tap0",
    "sidecar.istio.io/interceptionMode": "TPROXY",
    "status.sidecar.istio.io/port": "15099",
}
LABEL = "sidecar.istio.io/inject"
# Metadata and specification of a pod, by what is special about it.
PODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"containers": [APP, PROXY], "initContainers": [WAIT]}),
    "native": ({}, {"containers": [APP], "initContainers": [NATIVE, WAIT]}),
    "annotated": ({"annotations": ANNOTATED}, {"containers": [APP, PROXY]}),
    "older name": ({"annotations": {f"{TRAFFIC}kubevirtInterfaces": "old0"}}, {"containers": [APP, PROXY]}),
    "status port 0": ({"annotations": {"status.sidecar.istio.io/port": "0"}}, {"containers": [APP, PROXY]}),
    "status port listed": ({"annotations": {f"{TRAFFIC}excludeInboundPorts": "15020"}}, {"containers": [APP, PROXY]}),
    "empty lists": (
        {"annotations": {f"{TRAFFIC}includeInboundPorts": "", f"{TRAFFIC}excludeOutboundPorts": ""}},
        {"containers": [APP, PROXY]},
    ),
    "label before annotation": ({"labels": {LABEL: "true"}, "annotations": {LABEL: "false"}}, {"containers": [PROXY]}),
    "custom template": ({"annotations": {"inject.istio.io/templates": "custom, sidecar"}}, {"containers": [PROXY]}),
    "label false": ({"labels": {LABEL: "false"}}, {"containers": [PROXY]}),
    "annotation false": ({"annotations": {LABEL: "false"}}, {"containers": [PROXY]}),
    "host network": ({}, {"containers": [PROXY], "hostNetwork": True}),
    "gateway": ({"annotations": {"inject.istio.io/templates": "gateway"}}, {"containers": [PROXY]}),
    "none": ({"annotations": {"sidecar.istio.io/interceptionMode": "NONE"}}, {"containers": [PROXY]}),
    "router": ({}, {"containers": [{**PROXY, "args": ["proxy", "router"]}]}),
    "no Envoy": ({}, {"containers": [{**PROXY, "env": [{"name": "DISABLE_ENVOY", "value": "true"}]}]}),
}
REQUESTS = {
    "as it is": InitSpec({}, IMAGE, native=False),
    "options": InitSpec({"istio_service_cidr": "10.0.0.0/8", "native_nftables": "true"}, IMAGE, native=False),
    "validation": InitSpec({}, IMAGE, native=False, validation=True),
}


def admitted(node: KubernetesNode, namespace: str, pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The init containers of a pod as the API server would store it."""
    arguments = ("create", "--namespace", namespace, "--dry-run=server", "--output=json", "--filename=-")
    stored = json.loads(node.kubectl(*arguments, text=json.dumps(pod)))
    listed: list[dict[str, Any]] = stored["spec"].get("initContainers", [])
    return listed


def pod_of(name: str) -> dict[str, Any]:
    metadata, spec = PODS[name]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", **metadata}, "spec": spec}


def in_a_file(name: str, request: InitSpec) -> list[dict[str, Any]]:
    """The init containers that `inject` puts into the same pod's manifest."""
    (result,) = yaml.safe_load_all(inject(json.dumps(pod_of(name)), request).text)
    listed: list[dict[str, Any]] = result["spec"].get("initContainers", [])
    return listed


def facts(containers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What counts of init containers; of those that were there before, the name alone."""
    kept = ("name", "image", "args", "securityContext", "resources")
    return [
        {key: each[key] for key in (kept if each["name"].startswith(("istio-init", "istio-val")) else ("name",))}
        for each in containers
    ]


@pytest.fixture(params=REQUESTS)
def request_(node: KubernetesNode, namespace: str, request: pytest.FixtureRequest) -> Iterator[InitSpec]:
    """A policy in force for the namespace."""
    chosen = REQUESTS[request.param]
    yield from in_force(node, namespace, chosen, CAPTURE)


def in_force(node: KubernetesNode, namespace: str, request: InitSpec, kind: str) -> Iterator[InitSpec]:
    text = printed(kind, request, VERSION)
    node.kubectl("label", "namespace", namespace, "istio-injection=enabled")
    node.kubectl("apply", "--filename=-", text=text)
    try:
        yield request
    finally:
        node.kubectl("delete", "--filename=-", text=text)


def test_a_pod_gets_what_its_manifest_would_get(node: KubernetesNode, namespace: str, request_: InitSpec) -> None:
    # The API server compiles a new policy within a moment, and not at once.
    node.until(lambda: bool(admitted(node, namespace, pod_of("status port 0"))), "the policy to be in force")
    time.sleep(1)
    differing = {
        name: (mine, theirs)
        for name in PODS
        if (mine := facts(in_a_file(name, request_))) != (theirs := facts(admitted(node, namespace, pod_of(name))))
    }
    assert differing == {}


def test_a_namespace_without_the_label_is_left_alone(node: KubernetesNode, namespace: str, request_: InitSpec) -> None:
    node.until(lambda: bool(admitted(node, namespace, pod_of("status port 0"))), "the policy to be in force")
    assert admitted(node, "default", pod_of("status port 0")) == []


def test_the_image_alone(node: KubernetesNode, namespace: str) -> None:
    theirs = {
        "name": "istio-init",
        "image": "docker.io/istio/proxyv2:1.29.0",
        "args": ["istio-iptables", "-p", "15001"],
    }
    pod = {**pod_of("plain"), "spec": {"containers": [APP], "initContainers": [WAIT, theirs]}}
    for _ in in_force(node, namespace, InitSpec({}, IMAGE), IMAGE_ALONE):
        node.until(lambda: admitted(node, namespace, pod)[1]["image"] == IMAGE, "the policy to be in force")
        wait, swapped = admitted(node, namespace, pod)
        assert (wait["image"], swapped["image"], swapped["args"]) == (WAIT["image"], IMAGE, theirs["args"])
        assert admitted(node, namespace, pod_of("none")) == []
