"""What Istio's injector would put into a workload: nothing and why, or an init container's arguments and environment.

The questions, their order and the defaults are those of istiod (pkg/kube/inject: injectRequired, validateAnnotations,
RunTemplate, adjustInitContainerUser) and of its template `sidecar`, without the CNI plugin's defaults: no `-o 15020`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_init.errors import shown
from istio_init.model import parsers
from istio_init.options.annotations import (
    INJECT,
    MODE,
    NO_CAPTURE,
    PROXY_CONFIG,
    STATUS_PORT,
    TEMPLATES,
    AnnotationError,
    find,
    interception_mode,
    metadata_values,
    proxy_config,
    proxy_metadata,
)
from istio_init.options.cni_pod import PROXY_CONTAINER, SIDECAR
from istio_init.options.table import OPTIONS, PROXY_UID
from istio_init.options.workload import role
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from istio_init.options.workload import Workload

# pkg/kube/inject/initializer.go: IgnoredNamespaces.
SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease", "local-path-storage"})
NATIVE_SIDECAR = "sidecar.istio.io/nativeSidecar"
AGENT_LOG_LEVEL = "sidecar.istio.io/agentLogLevel"
MODES = (*parsers.MODES, NO_CAPTURE)

# What the sidecar serves itself: Envoy's metrics, and readiness. The agent's status port follows.
SIDECAR_PORTS = "15090,15021"
AGENT_PORT = "15020"

# Options with which no rule is written.
SPARING = frozenset({"skip_rule_apply", "dry_run"})

PREFIX = "traffic.sidecar.istio.io/"
# Options that one annotation sets, and the value without it; None: Istio passes the option only where it is set.
VALUES: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    ("istio_service_cidr", (f"{PREFIX}includeOutboundIPRanges",), "*"),
    ("istio_service_exclude_cidr", (f"{PREFIX}excludeOutboundIPRanges",), ""),
    ("istio_inbound_ports", (f"{PREFIX}includeInboundPorts",), "*"),
    ("istio_outbound_ports", (f"{PREFIX}includeOutboundPorts",), None),
    ("istio_local_outbound_ports_exclude", (f"{PREFIX}excludeOutboundPorts",), None),
    ("kube_virt_interfaces", ("istio.io/reroute-virtual-interfaces", f"{PREFIX}kubevirtInterfaces"), None),
    ("istio_exclude_interfaces", (f"{PREFIX}excludeInterfaces",), None),
    ("log_output_level", (AGENT_LOG_LEVEL,), "default:info"),
)
EXCLUDED_INBOUND = f"{PREFIX}excludeInboundPorts"


class Injection(Record):
    """The capture of one workload: `why_not` says why there is none.

    `texts` are those of the options by field, as Istio passes them. `environ` is the init container's, from
    proxyMetadata. `native` tells whether the proxy is a native sidecar, which decides the init container's place.
    """

    why_not: str = ""
    texts: Mapping[str, str] = {}
    environ: Mapping[str, str] = {}
    native: bool = True


def injection(
    workload: Workload,
    defaults: Mapping[str, str] | None = None,
    proxy_name: str = PROXY_CONTAINER,
    *,
    native: bool = True,
) -> Injection:
    """What Istio's injector would make of a workload.

    `defaults` are option texts by field that stand for the mesh's values: annotations win. `native` is what a proxy is
    that is not in the pod yet. AnnotationError where Istio would refuse the pod, ValueError where it can't be read.
    """
    defaults = defaults or {}
    if why := _not_required(workload):
        return Injection(why)
    annotations = workload.annotations
    config, metadata = _checked(annotations)
    if why := _no_capture(workload, metadata, proxy_name):
        return Injection(why)
    mode = annotations.get(MODE) or config or defaults.get("istio_inbound_interception_mode", "REDIRECT")
    if mode == NO_CAPTURE:
        return Injection(f"interception mode {mode}: nothing is captured in this pod")
    texts = {
        "istio_inbound_interception_mode": mode,
        "istio_local_exclude_ports": _excluded_inbound(annotations, defaults),
        "proxy_uid": _proxy_uid(workload, defaults, proxy_name),
    }
    for field, names, default in VALUES:
        value = next((annotations[name] for name in names if name in annotations), defaults.get(field, default))
        if value is not None:
            texts[field] = value
    return Injection("", {**defaults, **texts}, metadata, _native(workload, proxy_name, native=native))


def _not_required(workload: Workload) -> str:
    """Why Istio leaves a workload alone before it looks at the annotations' values; empty where it does not."""
    if workload.out_of_reach:
        return workload.out_of_reach
    if workload.namespace in SYSTEM_NAMESPACES:
        return f"namespace {workload.namespace}: Istio injects nothing there"
    kind = "label" if INJECT in workload.labels else "annotation"
    value = {**workload.annotations, **workload.labels}.get(INJECT)
    return f"{kind} {INJECT}: 'false': nothing is captured in this pod" if value == "false" else ""


def _no_capture(workload: Workload, metadata: Mapping[str, str], proxy_name: str) -> str:
    """Why the workload's templates or its proxy mean no capture; empty where they do not."""
    if (annotation := workload.annotations.get(TEMPLATES)) is not None:
        templates = [name.strip() for name in annotation.split(",")]
        if "" in templates:
            raise AnnotationError(TEMPLATES, annotation, "names no template; use sidecar, or leave the annotation out")
        if SIDECAR not in templates:
            return f"annotation {TEMPLATES}: {shown(annotation)}: no sidecar: nothing is captured in this pod"
    proxy = workload.proxy(proxy_name)
    if (proxy_role := role(proxy)) and proxy_role != SIDECAR:
        return f"{proxy_name} runs as {shown(proxy_role)}, not as a sidecar: nothing is captured in this pod"
    variables = {**metadata, **(proxy.environment({"DISABLE_ENVOY"}) if proxy else {})}
    if variables.get("DISABLE_ENVOY", "") in parsers.TRUE:
        return f"DISABLE_ENVOY is set on {proxy_name}: nothing is captured in this pod"
    if name := sparing_variable(metadata, ()):
        return f"{name} in proxyMetadata: the init container applies no rules: nothing is captured in this pod"
    return ""


def sparing_variable(environ: Mapping[str, str], fields: Container[str]) -> str:
    """The variable by which no rule is applied, unless its option is one of `fields`; empty where there is none."""
    for each in OPTIONS:
        if each.field in SPARING and each.field not in fields:
            # As resolve() has it: the first variable that is not empty counts, in the option's order.
            name = next(filter(environ.get, each.variables), "")
            if environ.get(name) in parsers.TRUE:
                return name
    return ""


def _excluded_inbound(annotations: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    """The inbound ports to leave alone: the sidecar's, those of the annotation, and the agent's status port."""
    base = defaults.get("istio_local_exclude_ports")
    status = annotations.get(STATUS_PORT, AGENT_PORT if base is None else "").strip()
    listed = annotations.get(EXCLUDED_INBOUND, "")
    if status not in {"", "0"} and status not in listed.split(","):
        listed = ",".join(filter(None, [*(port.strip() for port in listed.split(",")), status]))
    return ",".join(filter(None, [SIDECAR_PORTS if base is None else base, listed]))


def _proxy_uid(workload: Workload, defaults: Mapping[str, str], proxy_name: str) -> str:
    """The proxy's user: that of its container, unless it is root (which -u can't mean, even with TPROXY)."""
    proxy = workload.proxy(proxy_name)
    uid = proxy.account("runAsUser") if proxy else None
    return str(uid) if uid else defaults.get("proxy_uid", str(PROXY_UID))


def _native(workload: Workload, proxy_name: str, *, native: bool) -> bool:
    proxy = workload.proxy(proxy_name)
    if proxy is not None:
        return proxy.init
    annotation = workload.annotations.get(NATIVE_SIDECAR)
    return annotation != "false" if annotation else native


# -- The annotations' values, held to what Istio takes (pkg/kube/inject/validate.go) and to what the options take.


def _checked(annotations: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """The proxy configuration's interception mode, and its proxyMetadata; AnnotationError for a wrong value."""
    for name, value in annotations.items():
        annotation = find(name)
        if annotation is not None and not annotation.path:
            annotation.parse(value)
        if name in VALIDATORS:
            try:
                VALIDATORS[name](value)
            except ValueError as error:
                raise AnnotationError(name, value, str(error)) from None
    config = proxy_config(annotations[PROXY_CONFIG]) if PROXY_CONFIG in annotations else {}
    mode = interception_mode(config)
    if mode and mode not in MODES:
        raise AnnotationError(PROXY_CONFIG, mode, f"interceptionMode: unknown: use {', '.join(MODES)}")
    metadata = proxy_metadata(config)
    for name, value in metadata_values(config).items():
        if not isinstance(value, str):
            raise AnnotationError(f"{PROXY_CONFIG}: proxyMetadata.{name}", metadata[str(name)], "no text: quote it")
    return mode, metadata


def _port(text: str) -> None:
    """A number of 16 bits, as Go's strconv.ParseUint takes it."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 100 or int(digits) > 65535:
        raise ValueError(f"{shown(text, 20)} is not a port: Istio takes no ranges")


def _ports(text: str) -> None:
    for item in text.strip().split(",") if text.strip() else ():
        _port(item)


def _or_all(check: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: None if text == parsers.ALL else check(text)


def _prefixes(text: str) -> None:
    for item in text.split(",") if text else ():
        if "/" not in item or item != item.strip():
            raise ValueError("not a CIDR: Istio takes no bare IP" if item else "an empty entry")
        parsers.network(item)


def _interfaces(text: str) -> None:
    for item in text.split(",") if text else ():
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]{0,14}", item.strip(), re.ASCII):
            raise ValueError(f"{shown(item, 20)} is not an interface's name")


def _mode(text: str) -> None:
    if text not in MODES:
        raise ValueError(f"unknown: use {', '.join(MODES)}")


def _number(text: str) -> None:
    if not (text.isascii() and text.isdigit()) or len(text) > 100 or int(text) >= 1 << 32:
        raise ValueError("not a number of 32 bits")


def _boolean(text: str) -> None:
    parsers.boolean(text)


def _quantity(text: str) -> None:
    """Kubernetes' resource.Quantity: a decimal number with a suffix or an exponent."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?", text, re.ASCII):
        raise ValueError("not a quantity such as 100m or 128Mi")


VALIDATORS: Mapping[str, Callable[[str], None]] = {
    MODE: _mode,
    STATUS_PORT: _port,
    f"{PREFIX}includeOutboundIPRanges": _or_all(_prefixes),
    f"{PREFIX}excludeOutboundIPRanges": _prefixes,
    f"{PREFIX}includeInboundPorts": _or_all(_ports),
    EXCLUDED_INBOUND: _ports,
    f"{PREFIX}excludeOutboundPorts": _ports,
    f"{PREFIX}excludeInterfaces": _interfaces,
    f"{PREFIX}kubevirtInterfaces": _interfaces,
    "istio.io/reroute-virtual-interfaces": _interfaces,
    "readiness.status.sidecar.istio.io/initialDelaySeconds": _number,
    "readiness.status.sidecar.istio.io/periodSeconds": _number,
    "readiness.status.sidecar.istio.io/failureThreshold": _number,
    "prometheus.istio.io/merge-metrics": _boolean,
    "sidecar.istio.io/proxyCPU": _quantity,
    "sidecar.istio.io/proxyMemory": _quantity,
    "sidecar.istio.io/proxyCPULimit": _quantity,
    "sidecar.istio.io/proxyMemoryLimit": _quantity,
}
