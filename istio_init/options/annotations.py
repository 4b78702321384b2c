"""The pod annotations that configure traffic capture, and the option that each of them sets.

`ANNOTATIONS` is the only table of them: the CNI plugin, `--from-pod`, `istio-init manifest`, explain and the
documentation use it. Names and meanings are Istio's
(https://istio.io/latest/docs/reference/config/annotations/); the values of a pod without annotations are those of
Istio's CNI plugin (cni/pkg/plugin/sidecar_redirect.go).
"""

from __future__ import annotations

from istio_init.errors import shown
from istio_init.errors_rare import UsageError
from istio_init.model import parsers
from istio_init.options.table import OPTIONS, SWITCH_VALUES, warn_of_misfit
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from istio_init.options.table import Option

INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
TEMPLATES = "inject.istio.io/templates"
MODE = "sidecar.istio.io/interceptionMode"
STATUS_PORT = "status.sidecar.istio.io/port"
PROXY_CONFIG = "proxy.istio.io/config"
TRAFFIC = "traffic.sidecar.istio.io/"

# The interception mode of a pod whose traffic is not captured.
NO_CAPTURE = "NONE"
# The numbers of the modes, which protobuf's JSON takes as well (ProxyConfig.InboundInterceptionMode).
_MODES = {0: "REDIRECT", 1: "TPROXY", 2: NO_CAPTURE}

# The ports of the sidecar itself, for kubelet and Prometheus: merged metrics, readiness, Envoy's metrics.
SIDECAR_PORTS = "15020,15021,15090"

# Kubernetes limits all annotations of an object together to this many bytes (TotalAnnotationSizeLimitB).
LONGEST = 256 * 1024


class AnnotationError(UsageError):
    """An annotation has a wrong value: its name, the value, the reason."""

    def __init__(self, name: str, value: str, why: str) -> None:
        super().__init__(f"annotation {name}: {shown(value)}: {why}")
        self.name, self.value, self.why = name, value, why


class Annotation(Record):
    """One annotation. `field` is the option that it sets, empty if it only decides whether the pod is captured.

    `unset` is the option's text for a pod without the annotation, `also` a list that is always added to the value.
    `path` leads to the key that is read, in an annotation that holds YAML.
    """

    name: str
    help: str
    field: str = ""
    unset: str = ""
    also: str = ""
    path: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The annotation's name, and the key in it that is read."""
        return f"{self.name}: {'.'.join(self.path)}" if self.path else self.name

    @property
    def option(self) -> Option | None:
        """The option that it sets."""
        return _OPTIONS.get(self.field)

    @property
    def flag(self) -> str:
        """The option's flag, the short one if there is one: -b, --redirect-dns."""
        option = self.option
        if option is None:
            return ""
        return f"-{option.short}" if option.short else f"--{option.flag}"

    def parse(self, text: str) -> Any:  # noqa: ANN401 (each option has its own type)
        """The option's value for the annotation's text; for YAML, for the text of the key. Raises AnnotationError."""
        if len(text) > LONGEST:
            raise AnnotationError(self.name, text, f"longer than Kubernetes allows, {LONGEST} bytes")
        try:
            return self._parse(text)
        except ValueError as error:
            raise AnnotationError(self.title, text, str(error)) from None

    def _parse(self, text: str) -> object:
        option = self.option
        if option is None:
            return text
        if option.field == MODE_FIELD and text == NO_CAPTURE:
            return text
        if self.name == STATUS_PORT and text == "0":
            return ()  # the agent serves no status
        if text.startswith("-"):
            raise ValueError("looks like a flag, not a value")
        return option.parse(text)


_OPTIONS = {each.field: each for each in OPTIONS}
MODE_FIELD, _EXCLUDED_PORTS = "istio_inbound_interception_mode", "istio_local_exclude_ports"
_VIRTUAL = "kube_virt_interfaces"

# If two set the same option the first one wins, except for the lists of excluded inbound ports, which are joined.
ANNOTATIONS: tuple[Annotation, ...] = (
    Annotation(MODE, "REDIRECT, TPROXY, or NONE to capture nothing.", MODE_FIELD, "REDIRECT"),
    Annotation(f"{TRAFFIC}includeInboundPorts", "Inbound ports to capture, or * for all.", "istio_inbound_ports", "*"),
    Annotation(
        f"{TRAFFIC}excludeInboundPorts", "Inbound ports to exclude, in addition to the sidecar's own.",
        _EXCLUDED_PORTS, "", SIDECAR_PORTS,
    ),
    Annotation(
        f"{TRAFFIC}includeOutboundIPRanges", "Destinations to capture, or * for all.", "istio_service_cidr", "*"
    ),
    Annotation(f"{TRAFFIC}excludeOutboundIPRanges", "Destinations to exclude.", "istio_service_exclude_cidr"),
    Annotation(
        f"{TRAFFIC}includeOutboundPorts", "Outbound ports to capture for every destination.", "istio_outbound_ports"
    ),
    Annotation(
        f"{TRAFFIC}excludeOutboundPorts", "Outbound ports to exclude.", "istio_local_outbound_ports_exclude", "15020"
    ),
    Annotation(
        f"{TRAFFIC}excludeInterfaces", "Interfaces to exclude, inbound and outbound.", "istio_exclude_interfaces"
    ),
    Annotation(
        "istio.io/reroute-virtual-interfaces", "Interfaces of virtual machines, whose traffic is treated as outbound.",
        "kube_virt_interfaces",
    ),
    Annotation(
        f"{TRAFFIC}kubevirtInterfaces", "Older name of istio.io/reroute-virtual-interfaces; ignored if both are set.",
        "kube_virt_interfaces",
    ),
    Annotation(STATUS_PORT, "The agent's status port, excluded inbound as well; 0 for none.", _EXCLUDED_PORTS),
    Annotation(
        PROXY_CONFIG, "As sidecar.istio.io/interceptionMode; ignored if both are set.", MODE_FIELD,
        path=("interceptionMode",),
    ),
    Annotation(
        PROXY_CONFIG, "IPv6 rules if any address of the pod is IPv6.", "dual_stack",
        path=("proxyMetadata", "ISTIO_DUAL_STACK"),
    ),
    Annotation(
        PROXY_CONFIG, "DNS capture.", "redirect_dns", path=("proxyMetadata", "ISTIO_META_DNS_CAPTURE")
    ),
    Annotation(
        PROXY_CONFIG, "Drop inbound packets in conntrack state INVALID.", "drop_invalid",
        path=("proxyMetadata", "INVALID_DROP"),
    ),
    Annotation(INJECT, "false: the pod is not captured. Any other value is ignored, as by Istio's plugin."),
    Annotation(STATUS, "Written by the injection; a pod without it has no sidecar."),
    Annotation(TEMPLATES, "The injection's templates; gateway pods are not captured."),
)  # fmt: skip

NAMES = frozenset({each.name for each in ANNOTATIONS})
_KEYS = frozenset({each.name.rpartition("/")[2].lower() for each in ANNOTATIONS})


def suspicious(annotations: Mapping[str, str]) -> list[str]:
    """The names that look like one of ANNOTATIONS and are none: annotation_warnings.py says what was meant."""
    return [
        name
        for name in annotations
        if name not in NAMES
        and (name.startswith(TRAFFIC) or ("istio.io/" in name and name.rpartition("/")[2].lower() in _KEYS))
    ]


def find(name: str) -> Annotation | None:
    """The annotation of this name; None for one that istio-init does not read."""
    return next((each for each in ANNOTATIONS if each.name == name), None)


def of_flag(flag: str) -> Annotation | None:
    """The annotation that sets a flag, given in its short form if it has one; None if there is none."""
    return next((each for each in ANNOTATIONS if each.field and each.flag == flag), None)


def parse_annotations(
    annotations: Mapping[str, str], warnings: list[str] | None = None, *, strict: bool = False
) -> dict[str, Any]:
    """The option values that a pod's annotations set, by field; raises AnnotationError for a wrong value.

    A variable of proxyMetadata that is no boolean counts as false, with a warning, unless `strict`. Other annotations
    are ignored. The interception mode may be NO_CAPTURE, which no option takes: the caller decides what to do with such
    a pod.
    """
    values: dict[str, Any] = {}
    config: Mapping[str, Any] | None = None
    for each in ANNOTATIONS:
        text = annotations.get(each.name)
        if text is None or not each.field:
            continue
        if each.path:
            config = proxy_config(text) if config is None else config
            text = _member(config, each)
            if text and each.option and each.option.switch and text not in SWITCH_VALUES:
                warn_of_misfit(f"annotation {each.title}", text, warnings, strict=strict)
                text = "false"
        if text is not None:
            _set(values, each, each.parse(text))
    _require_bounded(values, annotations)
    return values


def _require_bounded(values: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
    """AnnotationError where each of many interfaces would have a rule for each of many destinations."""
    interfaces, networks = values.get(_VIRTUAL, ()), values.get("istio_service_cidr", ())
    if count := excess(interfaces, networks):
        name = next(each.name for each in ANNOTATIONS if each.field == _VIRTUAL and each.name in annotations)
        why = (
            f"with {TRAFFIC}includeOutboundIPRanges it makes {count} rules, at most {parsers.MOST_ENTRIES} are allowed"
        )
        raise AnnotationError(name, annotations[name], why)


def excess(interfaces: Sequence[str], networks: Sequence[object]) -> int:
    """How many rules virtual machines' interfaces make with so many destinations, 0 where they are not too many."""
    count = 0 if networks == parsers.ALL else len(interfaces) * len(networks)
    return count if count > parsers.MOST_ENTRIES else 0


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options, by field, with those that Istio's CNI plugin takes for what is not set."""
    merged = dict(values)
    for each in ANNOTATIONS:
        if each.unset and each.field not in merged:
            merged[each.field] = each.parse(each.unset)
        if each.also:
            merged[each.field] = _joined(merged.get(each.field, ()), each.parse(each.also))
    return merged


def proxy_config(text: str) -> Mapping[str, Any]:
    """The mapping in proxy.istio.io/config (a ProxyConfig as YAML or JSON); raises AnnotationError if it is none."""
    if len(text) > LONGEST:
        raise AnnotationError(PROXY_CONFIG, text, f"longer than Kubernetes allows, {LONGEST} bytes")
    # PyYAML takes longer to import than a whole ADD takes, and few pods have this annotation.
    from istio_init.formats import yaml_json

    try:
        documents = yaml_json.load(text)
    except ValueError as error:
        raise AnnotationError(PROXY_CONFIG, text, str(error)) from None
    config = documents[0] if documents else {}
    if not isinstance(config, dict):
        raise AnnotationError(PROXY_CONFIG, text, "not a mapping of keys to values")
    return config


def proxy_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """The variables in a ProxyConfig's proxyMetadata, which become environment variables of Istio's containers."""
    variables = metadata_values(config)
    return {str(name): _scalar(f"{PROXY_CONFIG}: proxyMetadata.{name}", variables[name]) for name in variables}


def interception_mode(config: Mapping[str, Any]) -> str:
    """A ProxyConfig's interceptionMode as text; empty where it gives none."""
    value = _key(config, "interceptionMode")
    return _scalar(f"{PROXY_CONFIG}: interceptionMode", _MODES.get(value, value) if type(value) is int else value)


def metadata_values(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same variables, as YAML has their values."""
    value = _key(config, "proxyMetadata")
    if value is not None and not isinstance(value, dict):
        raise AnnotationError(
            f"{PROXY_CONFIG}: proxyMetadata",
            "a list" if isinstance(value, list) else str(value),
            "not a mapping of keys to values",
        )
    return value or {}


def _member(config: Mapping[str, Any], each: Annotation) -> str | None:
    """The text at an annotation's path; None if there is nothing, or an empty text."""
    if len(each.path) == 1:
        return interception_mode(config) or None
    value = metadata_values(config).get(each.path[1])
    return None if value is None else _scalar(each.title, value) or None


def _key(config: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 (YAML)
    """A key's value. As protobuf's JSON mapping, this takes lowerCamelCase and the proto's own snake_case."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return config.get(name, config.get(snake))


def _scalar(place: str, value: object) -> str:
    """A YAML scalar as text: true and 1 mean the same as "true" and "1"."""
    if isinstance(value, dict | list):
        # Not its text: with YAML's aliases that can be longer than any memory.
        raise AnnotationError(place, "a list" if isinstance(value, list) else "a mapping", "not a text")
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _set(values: dict[str, Any], each: Annotation, value: Any) -> None:  # noqa: ANN401 (an option's)
    if each.field == _EXCLUDED_PORTS:
        values[each.field] = _joined(values.get(each.field, ()), value)
    else:
        values.setdefault(each.field, value)


def _joined(*lists: tuple[Any, ...]) -> tuple[Any, ...]:
    """The entries of all lists in order, each once."""
    return tuple(dict.fromkeys(entry for entries in lists for entry in entries))
