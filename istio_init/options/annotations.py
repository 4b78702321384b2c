"""The pod annotations that shape a capture, and which option each of them sets: one table for all who read them.

The CNI plugin, `istio-init manifest`, explain and the docs are made from `ANNOTATIONS`. Names and meanings are
Istio's (https://istio.io/latest/docs/reference/config/annotations/), what is meant where a pod has none is what
Istio's CNI plugin takes (cni/pkg/plugin/sidecar_redirect.go).
"""

from __future__ import annotations

from istio_init.errors import shown
from istio_init.errors_rare import UsageError
from istio_init.model import parsers
from istio_init.options.table import OPTIONS
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.options.table import Option

INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
TEMPLATES = "inject.istio.io/templates"
MODE = "sidecar.istio.io/interceptionMode"
STATUS_PORT = "status.sidecar.istio.io/port"
PROXY_CONFIG = "proxy.istio.io/config"

# The interception mode of a pod whose sidecar takes no traffic.
NO_CAPTURE = "NONE"

# What the sidecar itself serves to kubelet and Prometheus: health and merged metrics, readiness, Envoy's metrics.
SIDECAR_PORTS = "15020,15021,15090"

# All annotations of an object together may have this many bytes (TotalAnnotationSizeLimitB of Kubernetes' validation).
LONGEST = 256 * 1024


class AnnotationError(UsageError):
    """An annotation's value is wrong: which one, which value, why."""

    def __init__(self, name: str, value: str, why: str) -> None:
        super().__init__(f"annotation {name}: {shown(value)}: {why}")
        self.name, self.value, self.why = name, value, why


class Annotation(Record):
    """One annotation. `field` is the option that it sets, empty where it only says whether a pod is captured at all.

    `unset` is the option's text for a pod without the annotation, `also` what is added to the text of each pod.
    `key` is what it is of the annotation's content that counts, where it is not the whole.
    """

    name: str
    help: str
    field: str = ""
    unset: str = ""
    also: str = ""
    key: str = ""

    @property
    def title(self) -> str:
        """The annotation as a reader is told it: its name, and the part that counts."""
        return f"{self.name}: {self.key}" if self.key else self.name

    @property
    def option(self) -> Option | None:
        """The option that it sets."""
        return _OPTIONS.get(self.field)

    @property
    def flag(self) -> str:
        """The option's flag as people write it, the short one where there is one: -b, --redirect-dns."""
        option = self.option
        if option is None:
            return ""
        return f"-{option.short}" if option.short else f"--{option.flag}"

    def parse(self, text: str) -> object:
        """The value as the option has it; AnnotationError where the text is not one."""
        if len(text) > LONGEST:
            raise AnnotationError(self.name, text, f"longer than Kubernetes allows, {LONGEST} bytes")
        try:
            return self._parse(text)
        except ValueError as error:
            raise AnnotationError(self.name, text, str(error)) from None

    def _parse(self, text: str) -> object:
        if self.name == MODE and text == NO_CAPTURE:
            return text
        if self.name == STATUS_PORT and text == "0":
            return ()  # the agent serves no status
        option = self.option
        if option is None:
            return text
        if self.key:
            return _metadata(self, text)
        if text.startswith("-"):
            raise ValueError("looks like a flag, not a value")
        return option.parse(text)


_OPTIONS = {each.field: each for each in OPTIONS}

# Of two that set one option the first one counts, but for the lists of inbound ports to leave alone, which add up.
ANNOTATIONS: tuple[Annotation, ...] = (
    Annotation(
        MODE, "REDIRECT, TPROXY, or NONE: nothing is captured.", "istio_inbound_interception_mode", "REDIRECT"
    ),
    Annotation(
        "traffic.sidecar.istio.io/includeInboundPorts", "Inbound ports to capture, or * for all.",
        "istio_inbound_ports", "*",
    ),
    Annotation(
        "traffic.sidecar.istio.io/excludeInboundPorts", "Inbound ports to leave alone, beside the sidecar's own.",
        "istio_local_exclude_ports", "", SIDECAR_PORTS,
    ),
    Annotation(
        "traffic.sidecar.istio.io/includeOutboundIPRanges", "Destinations to capture, or * for all.",
        "istio_service_cidr", "*",
    ),
    Annotation(
        "traffic.sidecar.istio.io/excludeOutboundIPRanges", "Destinations to leave alone.", "istio_service_exclude_cidr"
    ),
    Annotation(
        "traffic.sidecar.istio.io/includeOutboundPorts", "Outbound ports to capture, wherever they lead.",
        "istio_outbound_ports",
    ),
    Annotation(
        "traffic.sidecar.istio.io/excludeOutboundPorts", "Outbound ports to leave alone.",
        "istio_local_outbound_ports_exclude", "15020",
    ),
    Annotation(
        "traffic.sidecar.istio.io/excludeInterfaces", "Interfaces to leave alone, in and out.",
        "istio_exclude_interfaces",
    ),
    Annotation(
        "istio.io/reroute-virtual-interfaces", "Interfaces of virtual machines, whose traffic counts as outbound.",
        "kube_virt_interfaces",
    ),
    Annotation(
        "traffic.sidecar.istio.io/kubevirtInterfaces", "The older name of the one above, which counts if both are set.",
        "kube_virt_interfaces",
    ),
    Annotation(
        STATUS_PORT, "The agent's status port, left alone inbound, too; 0 for none.", "istio_local_exclude_ports"
    ),
    Annotation(
        PROXY_CONFIG, "IPv6 where any address of the pod is IPv6.", "dual_stack", key="proxyMetadata ISTIO_DUAL_STACK",
    ),
    Annotation(
        PROXY_CONFIG, "DNS capture.", "redirect_dns", key="proxyMetadata ISTIO_META_DNS_CAPTURE"
    ),
    Annotation(
        PROXY_CONFIG, "Drop inbound packets that conntrack calls INVALID.", "drop_invalid",
        key="proxyMetadata INVALID_DROP",
    ),
    Annotation(INJECT, "false: the pod is not captured. Any other value says nothing, as in Istio's plugin."),
    Annotation(STATUS, "What the injection left behind; a pod without it has no sidecar."),
    Annotation(TEMPLATES, "The injection's templates; a gateway's pod is not captured."),
)  # fmt: skip


def named(name: str) -> Annotation | None:
    """The annotation of this name, or None for one that is none of ours."""
    return next((each for each in ANNOTATIONS if each.name == name), None)


def of_flag(flag: str) -> Annotation | None:
    """The annotation by which a pod sets a flag, given in its short form if it has one; None if none does."""
    return next((each for each in ANNOTATIONS if each.field and each.flag == flag), None)


def texts(given: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """The option texts that a pod's annotations mean, by field, with what is meant where it has none.

    `defaults` (by field, too) come before what Istio's plugin takes. AnnotationError where a value is wrong,
    whichever; the text of an annotation that is none of ours does not matter. A mode of NONE is the caller's to look
    at: it sets no option.
    """
    found: dict[str, str] = {}
    for each in ANNOTATIONS:
        if each.name in given and each.field:
            each.parse(given[each.name])
            _set(found, each, given[each.name])
    for field, text in (defaults or {}).items():
        found.setdefault(field, text)
    for each in ANNOTATIONS:
        if each.unset and each.field not in found:
            found[each.field] = each.unset
        if each.also:
            found[each.field] = ",".join(_merged(found.get(each.field, ""), each.also))
    return found


def _set(found: dict[str, str], each: Annotation, text: str) -> None:
    if each.key:
        value = _metadata(each, text)
        if value:
            found[each.field] = value
    elif each.field == "istio_local_exclude_ports":
        found[each.field] = ",".join(_merged(found.get(each.field, ""), "" if text == "0" else text))
    elif each.name != MODE or text != NO_CAPTURE:
        found.setdefault(each.field, text)


def _metadata(each: Annotation, text: str) -> str:
    """The value that a proxy configuration (YAML, or JSON) gives to a variable of proxyMetadata; empty where none.

    It is looked for by its name: these names mean nothing else, and reading YAML takes longer than a whole ADD.
    """
    variable, found = each.key.rpartition(" ")[2], ""
    for line in text.splitlines():
        before, name, rest = line.partition(variable)
        if not name or before.lstrip().startswith("#"):
            continue
        value = rest.lstrip("\"' ").removeprefix(":").lstrip("\"' ").split("#", 1)[0]
        found = value.split(",")[0].split("}")[0].strip("\"' ")
        if found not in parsers.TRUE | parsers.FALSE:
            raise AnnotationError(each.name, line.strip(), f'can\'t be read: write {variable}: "true" or "false"')
    return found


def _merged(*lists: str) -> list[str]:
    """The entries of all comma lists, each once, in order."""
    return list(dict.fromkeys(item for text in lists for item in parsers.items(text)))
