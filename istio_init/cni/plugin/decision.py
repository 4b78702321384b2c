"""What is to be done for a pod: captured, with which options, or passed through, and why.

The order of the questions is that of Istio's CNI plugin (cni/pkg/plugin/plugin.go, doAddRun).
"""

from __future__ import annotations

from istio_init.cni.plugin.fast_json import decode
from istio_init.cni.plugin.protocol import CONFIGURATION, NAMESPACE, POD, PluginError
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import CAPABILITY
from istio_init.errors import shown
from istio_init.model import parsers
from istio_init.options.annotations import INJECT, MODE, NO_CAPTURE, STATUS, TEMPLATES, named
from istio_init.options.annotations import texts as annotation_texts
from istio_init.options.table import OPTIONS, PROXY_UID, resolve
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_init.cni.plugin.protocol import Request
    from istio_init.cni.plugin.settings import Api, Settings
    from istio_init.options.table import Lookup, Options

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
    """What is known of a pod. `containers` (init containers included) is None where nobody told them."""

    annotations: Mapping[str, str]
    labels: Mapping[str, str] = {}
    containers: tuple[str, ...] | None = None
    variables: Mapping[str, str] = {}
    role: str = ""
    proxy_uid: int = 0
    proxy_gid: int = 0
    host_network: bool = False


class Decision(Record):
    """CAPTURED or PASSED, why, and the options' texts by field where it is to be captured."""

    decision: str
    why: str
    texts: Mapping[str, str] = {}

    def options(self, lookup: Lookup) -> Options:
        """The options, as the command line `flags` would give them. OptionError where one is wrong."""
        return resolve(self.texts, {}, lookup).replace(cni_mode=True)

    def flags(self) -> tuple[str, ...]:
        """The command line of istio-iptables that means the same."""
        names = {each.field: each.flag for each in OPTIONS}
        return ("--cni-mode", *(f"--{names[field]}={text}" for field, text in self.texts.items()))


def decide(request: Request, settings: Settings, ask: Callable[[Api, str, str], PodDescription]) -> Decision:
    """What is to be done for the pod of a request. `ask` gets its pod from the Kubernetes API.

    AnnotationError, OptionError or PluginError where what is asked for can't be understood.
    """
    name, namespace = request.args.get(POD, ""), request.args.get(NAMESPACE, "")
    if namespace in settings.exclude_namespaces:
        return Decision(PASSED, f"the namespace {namespace} is excluded")
    if settings.annotations is not None and name:
        return decide_for_pod(pod_from_annotations(settings.annotations), settings)
    if settings.block is not None:
        return Decision(
            CAPTURED, "the configuration says so", option_texts({}, {**settings.defaults, **settings.block})
        )
    if not name or not namespace:
        return Decision(PASSED, "not a pod of Kubernetes, and the configuration has no block istio")
    if settings.api is not None:
        return decide_for_pod(ask(settings.api, namespace, name), settings)
    raise PluginError(
        CONFIGURATION,
        f"nothing tells what the pod {namespace}/{name} asks for: declare the capability {CAPABILITY}, "
        "or give a block istio or a kubeconfig",
    )


def pod_from_annotations(given: Mapping[str, str]) -> PodDescription:
    """A pod of which the annotations are known; the injection's status tells its containers, if it can be read."""
    containers: tuple[str, ...] | None = None
    try:
        status = decode(given.get(STATUS, ""))
        lists = [status[key] or [] for key in ("initContainers", "containers") if key in status]
        containers = tuple(str(name) for names in lists for name in names) if lists else None
    except (ValueError, TypeError):
        pass
    return PodDescription(given, containers=containers)


def decide_for_pod(pod: PodDescription, settings: Settings) -> Decision:
    """What is to be done for a pod of Kubernetes."""
    if why := _reason_not_to_capture(pod):
        return Decision(PASSED, why)
    given = {name: text for name, text in pod.annotations.items() if named(name)}
    wanted = option_texts(given, settings.defaults, pod)
    if pod.annotations.get(MODE) == NO_CAPTURE:
        return Decision(PASSED, f"{MODE} is {NO_CAPTURE}")
    return Decision(CAPTURED, f"the pod has a sidecar ({STATUS})", wanted)


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
        raise PluginError(CONFIGURATION, f"{name} of the container {PROXY_CONTAINER}: {shown(text)}: not true or false")
    return text
