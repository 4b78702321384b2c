"""Whether a sandbox is captured and with which options, or passed through, and the reason."""

from __future__ import annotations

from istio_init.cni.plugin.fast_json import decode
from istio_init.cni.plugin.protocol import CONFIGURATION, NAMESPACE, POD, UID, PluginError
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import CAPABILITY, NONE
from istio_init.options.annotations import STATUS
from istio_init.options.cni_pod import PodDescription, judge, option_values
from istio_init.options.table import parse_texts, resolve
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from istio_init.cni.plugin.protocol import Request
    from istio_init.cni.plugin.settings import Api, Settings
    from istio_init.options.table import Lookup, Options


class Decision(Record):
    """CAPTURED or PASSED, the reason, and the options if the pod is captured; `warnings` are about its settings."""

    decision: str
    why: str
    options: Options | None = None
    warnings: tuple[str, ...] = ()


def decide(
    request: Request,
    settings: Settings,
    fetch: Callable[[Api, str, str], PodDescription],
    lookup: Lookup,
    ask: Callable[[str, str, str], PodDescription | None] = lambda _namespace, _name, _uid: None,
) -> Decision:
    """The decision for the pod of a request. `fetch` gets the pod from the Kubernetes API.

    `ask` gets a pod from the node agent, whose answer comes before all others; None where another source is to decide.

    Raises AnnotationError, OptionError or PluginError if the pod's or the network's settings are wrong.
    """
    name, namespace = request.args.get(POD, ""), request.args.get(NAMESPACE, "")
    if namespace in settings.exclude_namespaces:
        return Decision(PASSED, f"the namespace {namespace} is excluded")
    if settings.agent != NONE and name and namespace:
        pod = ask(namespace, name, request.args.get(UID, ""))
        if pod is not None:
            return decide_for_pod(pod, settings, lookup)
    if settings.annotations is not None and name:
        return decide_for_pod(pod_from_annotations(settings.annotations), settings, lookup)
    if settings.block is not None:
        return Decision(CAPTURED, "the network's configuration says so", network_options(settings, lookup))
    if not name or not namespace:
        return Decision(PASSED, "not a Kubernetes pod, and the configuration has no istio block")
    if settings.api is not None:
        return decide_for_pod(fetch(settings.api, namespace, name), settings, lookup)
    raise PluginError(
        CONFIGURATION,
        f"pod {namespace}/{name}: its annotations are not available: declare the capability {CAPABILITY}, "
        "or add an istio block or a kubeconfig to the configuration",
    )


def pod_from_annotations(annotations: Mapping[str, str]) -> PodDescription:
    """A pod of which only the annotations are known; the injection's status has its containers, if it is readable."""
    containers: tuple[str, ...] | None = None
    try:
        status = decode(annotations.get(STATUS, ""))
        lists = [status[key] or [] for key in ("initContainers", "containers") if key in status]
        containers = tuple(str(name) for names in lists for name in names) if lists else None
    except (ValueError, TypeError):
        pass
    return PodDescription(annotations, containers=containers)


def decide_for_pod(pod: PodDescription, settings: Settings, lookup: Lookup) -> Decision:
    """The decision for a Kubernetes pod."""
    warnings: list[str] = []
    why, values = judge(pod, parse_texts(settings.defaults, lookup), warnings)
    if why:
        return Decision(PASSED, why)
    return Decision(CAPTURED, f"the pod has a sidecar ({STATUS})", _options(values, lookup), tuple(warnings))


def network_options(settings: Settings, lookup: Lookup) -> Options:
    """The options that a network's configuration gives to every sandbox."""
    return _options(option_values(parse_texts({**settings.defaults, **(settings.block or {})}, lookup)), lookup)


def _options(values: Mapping[str, Any], lookup: Lookup) -> Options:
    return resolve({}, {}, lookup, {**values, "cni_mode": True})
