"""A pod as the CNI plugin sees it: captured or passed through, why, and with which options.

The order of the questions is that of Istio's CNI plugin (cni/pkg/plugin/plugin.go, doAddRun). The plugin and
`--from-pod` share it; it is on the hot path, so it imports next to nothing.
"""

from __future__ import annotations

from istio_init.errors import shown
from istio_init.errors_rare import OptionError
from istio_init.model import parsers
from istio_init.options.annotations import INJECT, MODE, NO_CAPTURE, STATUS, TEMPLATES, named
from istio_init.options.annotations import texts as annotation_texts
from istio_init.options.table import PROXY_UID
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

INIT_CONTAINER, PROXY_CONTAINER = "istio-init", "istio-proxy"
# The role of a sidecar's proxy, as opposed to a gateway's.
SIDECAR = "sidecar"

# What the variables of the sidecar's container say, by the option's field, as Istio's plugin reads them.
VARIABLES = {
    "redirect_dns": "ISTIO_META_DNS_CAPTURE",
    "dual_stack": "ISTIO_DUAL_STACK",
    "drop_invalid": "INVALID_DROP",
}


class PodDescription(Record):
    """What is known of a pod. `containers` (init containers included) is None where their names are unknown."""

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


def judge(pod: PodDescription, defaults: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Why a pod is not captured (empty where it is), and the texts of its options by field.

    AnnotationError or OptionError where a value can't be understood, even that of a pod in mode NONE.
    """
    if why := _reason_not_to_capture(pod):
        return why, {}
    given = {name: text for name, text in pod.annotations.items() if named(name)}
    texts = option_texts(given, defaults, pod)
    if pod.annotations.get(MODE) == NO_CAPTURE:
        return f"{MODE} is {NO_CAPTURE}", {}
    return "", texts


def _reason_not_to_capture(pod: PodDescription) -> str:
    """Why a pod is not to be captured, empty where it is."""
    if pod.host_network:
        return "it is in the node's own network"
    if pod.containers is not None and INIT_CONTAINER in pod.containers:
        return f"its init container {INIT_CONTAINER} makes the rules"
    if pod.variables.get("DISABLE_ENVOY", "") in parsers.TRUE:
        return "DISABLE_ENVOY is set on its sidecar"
    if pod.containers is not None and PROXY_CONTAINER not in pod.containers:
        return f"it has no container {PROXY_CONTAINER}"
    if pod.role and pod.role != SIDECAR:
        return f"its proxy is no sidecar but a {pod.role}"
    if (inject := pod.labels.get(INJECT, pod.annotations.get(INJECT, ""))) in parsers.FALSE:
        return f"{INJECT} is {inject}"
    if STATUS not in pod.annotations:
        return f"it has no sidecar: no annotation {STATUS}"
    if (template := pod.annotations.get(TEMPLATES, "")) and SIDECAR not in parsers.items(template):
        return f"its injection is no sidecar's: {TEMPLATES} is {shown(template, 40)}"
    return ""


def option_texts(
    given: Mapping[str, str], defaults: Mapping[str, str], pod: PodDescription | None = None
) -> dict[str, str]:
    """The texts of all options that are not left at the command line's default."""
    texts = annotation_texts(given, defaults)
    if pod is not None:
        texts.update({field: _variable(pod, name) for field, name in VARIABLES.items() if name in pod.variables})
        if pod.proxy_uid:
            texts["proxy_uid"] = str(pod.proxy_uid)
        if pod.proxy_gid:
            texts["proxy_gid"] = str(pod.proxy_gid)
    # Said, so that a user istio-proxy of the node's does not count.
    texts.setdefault("proxy_uid", str(PROXY_UID))
    return texts


def _variable(pod: PodDescription, name: str) -> str:
    text = pod.variables[name]
    if text not in parsers.TRUE | parsers.FALSE:
        raise OptionError(f"{name} of the container {PROXY_CONTAINER}", text, "not true or false")
    return text
