"""A pod as the CNI plugin sees it: captured or passed through, why, and with which options.

The order of the checks is that of Istio's CNI plugin (cni/pkg/plugin/plugin.go, doAddRun). The plugin and `--from-pod`
share this module; it is on the hot path, so it imports next to nothing.
"""

from __future__ import annotations

from istio_init.errors import shown
from istio_init.model import parsers
from istio_init.options.annotations import (
    INJECT,
    MODE,
    MODE_FIELD,
    NO_CAPTURE,
    PROXY_CONFIG,
    STATUS,
    TEMPLATES,
    parse_annotations,
    with_defaults,
)
from istio_init.options.table import PROXY_UID, SWITCH_VALUES, warn_of_misfit
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

INIT_CONTAINER, PROXY_CONTAINER = "istio-init", "istio-proxy"
# The role of a sidecar's proxy, as opposed to a gateway's.
SIDECAR = "sidecar"

# The variables of the sidecar's container that Istio's plugin reads, by the field of the option that they set.
VARIABLES = {
    "redirect_dns": "ISTIO_META_DNS_CAPTURE",
    "dual_stack": "ISTIO_DUAL_STACK",
    "drop_invalid": "INVALID_DROP",
}


class PodDescription(Record):
    """What is known about a pod. `containers` (with init containers) is None if their names are not known."""

    annotations: Mapping[str, str]
    labels: Mapping[str, str] = {}
    containers: tuple[str, ...] | None = None
    variables: Mapping[str, str] = {}
    role: str = ""
    proxy_uid: int = 0
    proxy_gid: int = 0
    host_network: bool = False


def proxy_role(words: list[str]) -> str:
    """The role in a proxy's command line (`pilot-agent proxy ROLE`); empty where it names none."""
    role = words[words.index("proxy") + 1] if "proxy" in words[:-1] else ""
    return "" if role.startswith("-") else role


def judge(
    pod: PodDescription, defaults: Mapping[str, Any], warnings: list[str] | None = None
) -> tuple[str, dict[str, Any]]:
    """Why a pod is not captured (empty if it is), and the values of its options by field.

    `defaults` are the values of options that the pod does not set. Raises AnnotationError or OptionError for a wrong
    value, even in a pod whose mode is NONE. A variable that is no boolean is one only with `strict_env`; else it counts
    as false, as for Istio's plugin, and adds to the warnings.
    """
    if why := _reason_not_to_capture(pod):
        return why, {}
    strict = bool(defaults.get("strict_env"))
    values = parse_annotations(pod.annotations, warnings, strict=strict)
    from_proxy = _proxy_values(pod, warnings, strict=strict)
    if values.get(MODE_FIELD) == NO_CAPTURE:
        return f"{MODE if MODE in pod.annotations else f'interceptionMode in {PROXY_CONFIG}'} is {NO_CAPTURE}", {}
    return "", option_values({**defaults, **values, **from_proxy})


def option_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options, by field, with those that Istio's CNI plugin takes for what is not set."""
    # The uid is always set: a user istio-proxy on the node must not matter.
    return {"proxy_uid": (PROXY_UID,), **with_defaults(values)}


def _reason_not_to_capture(pod: PodDescription) -> str:
    """Why a pod is not captured; empty if it is."""
    if pod.host_network:
        return "it uses the node's network"
    if pod.containers is not None and INIT_CONTAINER in pod.containers:
        return f"it has an init container {INIT_CONTAINER}"
    if pod.variables.get("DISABLE_ENVOY", "") in parsers.TRUE:
        return "DISABLE_ENVOY is set on its sidecar"
    if pod.containers is not None and PROXY_CONTAINER not in pod.containers:
        return f"it has no container {PROXY_CONTAINER}"
    if pod.role and pod.role != SIDECAR:
        return f"its proxy is a {pod.role}, not a sidecar"
    if (inject := pod.labels.get(INJECT, pod.annotations.get(INJECT, ""))) in parsers.FALSE:
        return f"{INJECT} is {inject}"
    if STATUS not in pod.annotations:
        return f"it has no sidecar: no annotation {STATUS}"
    if (template := pod.annotations.get(TEMPLATES, "")) and SIDECAR not in parsers.items(template):
        return f"it was not injected with the sidecar template: {TEMPLATES} is {shown(template, 40)}"
    return ""


def _proxy_values(pod: PodDescription, warnings: list[str] | None, *, strict: bool) -> dict[str, Any]:
    """The option values that the sidecar's container sets by its variables and its user."""
    values: dict[str, Any] = {}
    for field, name in VARIABLES.items():
        if (text := pod.variables.get(name)) is not None:
            if text not in SWITCH_VALUES:
                warn_of_misfit(f"{name} of the container {PROXY_CONTAINER}", text, warnings, strict=strict)
            values[field] = text in parsers.TRUE
    if pod.proxy_uid:
        values["proxy_uid"] = (pod.proxy_uid,)
    if pod.proxy_gid:
        values["proxy_gid"] = (pod.proxy_gid,)
    return values
