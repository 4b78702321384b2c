"""What is to be done for a pod: captured, with which options, or passed through, and why."""

from __future__ import annotations

from istio_init.cni.plugin.fast_json import decode
from istio_init.cni.plugin.protocol import CONFIGURATION, NAMESPACE, POD, PluginError
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import CAPABILITY
from istio_init.options.annotations import STATUS
from istio_init.options.cni_pod import PodDescription, judge, option_texts
from istio_init.options.table import OPTIONS, resolve
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_init.cni.plugin.protocol import Request
    from istio_init.cni.plugin.settings import Api, Settings
    from istio_init.options.table import Lookup, Options


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
    why, texts = judge(pod, settings.defaults)
    if why:
        return Decision(PASSED, why)
    return Decision(CAPTURED, f"the pod has a sidecar ({STATUS})", texts)
