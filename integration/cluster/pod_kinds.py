"""Kinds of pods that a CNI plugin has to decide about, as the API server has them."""

from __future__ import annotations

from typing import Any

from istio_init.options.annotations import INJECT, MODE, PROXY_CONFIG, STATUS, STATUS_PORT, TEMPLATES, TRAFFIC
from tests.kit.lying_api import pod

APP: dict[str, Any] = {"name": "app"}
ROUTER = {"name": "istio-proxy", "args": ["proxy", "router"]}
VALIDATION = {"name": "istio-validation"}


def proxy(*args: str, uid: int | None = None, gid: int | None = None) -> dict[str, Any]:
    """A sidecar's container with a user and a group."""
    user = {"runAsUser": uid, "runAsGroup": gid}
    container: dict[str, Any] = {
        "name": "istio-proxy",
        "args": list(args or ("proxy", "sidecar")),
        "securityContext": {key: value for key, value in user.items() if value is not None},
    }
    return container


def sidecar(name: str, value: str) -> dict[str, Any]:
    """The containers of a pod whose sidecar has a variable."""
    return {"containers": [APP, {**proxy(), "env": [{"name": name, "value": value}]}]}


def annotated(name: str, value: str, *more: str) -> dict[str, Any]:
    """An injected pod with annotations."""
    return {"annotations": {name: value, **dict(zip(more[::2], more[1::2], strict=True))}}


# What is special about each, as arguments of tests.kit.lying_api.pod: an injected pod with a sidecar, if nothing is.
KINDS: dict[str, dict[str, Any]] = {
    "injected": {},
    "injected, with validation": {"initContainers": [VALIDATION]},
    "native sidecar": {"containers": [APP], "initContainers": [VALIDATION, {**proxy(), "restartPolicy": "Always"}]},
    "no sidecar container": {"containers": [APP]},
    "istio-init makes the rules": {"initContainers": [{"name": "istio-init"}]},
    "a gateway": {"containers": [ROUTER]},
    "proxy without a role": {"containers": [APP, {"name": "istio-proxy", "args": ["proxy"]}]},
    "other arguments first": {"containers": [APP, proxy("--verbose", "proxy", "router")]},
    "template gateway": annotated(TEMPLATES, "gateway"),
    "template of one's own": annotated(TEMPLATES, "sidecar,custom"),
    "not injected": {"annotations": {STATUS: None}},
    "status is not JSON": annotated(STATUS, "injected"),
    "inject: false": annotated(INJECT, "false"),
    "inject: f": annotated(INJECT, "f"),
    "inject: no": annotated(INJECT, "no"),
    "inject: true": annotated(INJECT, "true"),
    "label false": {"labels": {INJECT: "false"}},
    "label true, annotation false": {"labels": {INJECT: "true"}, **annotated(INJECT, "false")},
    "label false, annotation true": {"labels": {INJECT: "false"}, **annotated(INJECT, "true")},
    "empty label, annotation false": {"labels": {INJECT: ""}, **annotated(INJECT, "false")},
    "DISABLE_ENVOY": sidecar("DISABLE_ENVOY", "true"),
    "DISABLE_ENVOY: no": sidecar("DISABLE_ENVOY", "no"),
    "DNS capture": sidecar("ISTIO_META_DNS_CAPTURE", "true"),
    "DNS capture: not a boolean": sidecar("ISTIO_META_DNS_CAPTURE", "perhaps"),
    "dual stack": sidecar("ISTIO_DUAL_STACK", "true"),
    "drop invalid packets": sidecar("INVALID_DROP", "true"),
    "OpenShift's user": {"containers": [APP, proxy(uid=1000650000, gid=1000650000)]},
    "user without a group": {"containers": [APP, proxy(uid=2000)]},
    "user 0": {"containers": [APP, proxy(uid=0, gid=1337)]},
    "REDIRECT": annotated(MODE, "REDIRECT"),
    "TPROXY": annotated(MODE, "TPROXY"),
    "NONE": annotated(MODE, "NONE"),
    "an unknown mode": annotated(MODE, "MIRROR"),
    "mode in proxy.istio.io/config": annotated(PROXY_CONFIG, "interceptionMode: TPROXY"),
    "inbound ports": annotated(f"{TRAFFIC}includeInboundPorts", "80,8080"),
    "no inbound port": annotated(f"{TRAFFIC}includeInboundPorts", ""),
    "not an inbound port": annotated(f"{TRAFFIC}includeInboundPorts", "http"),
    "excluded inbound ports": annotated(f"{TRAFFIC}excludeInboundPorts", "81, 82"),
    "all inbound ports excluded": annotated(f"{TRAFFIC}excludeInboundPorts", "*"),
    "status port": annotated(STATUS_PORT, "15099"),
    "outbound ranges": annotated(
        f"{TRAFFIC}includeOutboundIPRanges", "10.1.0.0/16,10.2.0.0/16",
        f"{TRAFFIC}excludeOutboundIPRanges", "10.1.2.0/24",
    ),
    "an IPv6 range": annotated(f"{TRAFFIC}includeOutboundIPRanges", "10.1.0.0/16,2001:db8::/32"),
    "an address without a length": annotated(f"{TRAFFIC}includeOutboundIPRanges", "10.1.2.3"),
    "outbound ports": annotated(
        f"{TRAFFIC}includeOutboundPorts", "443,8443", f"{TRAFFIC}excludeOutboundPorts", "25"
    ),
    "port 65536": annotated(f"{TRAFFIC}excludeOutboundPorts", "65536"),
    "excluded interface": annotated(f"{TRAFFIC}excludeInterfaces", "net1"),
    "virtual interfaces": annotated("istio.io/reroute-virtual-interfaces", "tap0,tap1"),
    "virtual interfaces, older name": annotated(f"{TRAFFIC}kubevirtInterfaces", "tap0"),
    "virtual interfaces, both names": annotated(
        "istio.io/reroute-virtual-interfaces", "tap0", f"{TRAFFIC}kubevirtInterfaces", "tap1"
    ),
}  # fmt: skip


def pod_of(kind: str, name: str) -> dict[str, Any]:
    """A pod of a kind, with a name."""
    created = pod(name, 1, **KINDS[kind])
    metadata = created["metadata"]
    metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if value is not None}
    return created
