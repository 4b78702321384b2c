"""The same capture as a MutatingAdmissionPolicy, which the API server runs itself: no webhook, no certificate.

`capture` adds the init container to a pod at admission, `image` swaps the image of the one that Istio's webhook adds.
The API server knows such policies since Kubernetes 1.34 (v1beta1) and serves v1 since 1.36.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors_rare import OptionError
from istio_init.inject.containers import options_of
from istio_init.options.annotations import INJECT, MODE, NO_CAPTURE, STATUS_PORT, TEMPLATES
from istio_init.options.cni_pod import SIDECAR
from istio_init.options.injection import (
    AGENT_PORT,
    EXCLUDED_INBOUND,
    SIDECAR_PORTS,
    SYSTEM_NAMESPACES,
    VALUES,
)
from istio_init.options.manifest import IMAGE, INIT, VALIDATION, container
from istio_init.options.table import PROXY_UID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from istio_init.inject.containers import InitSpec

CAPTURE, IMAGE_ALONE = "capture", "image"
KINDS = (CAPTURE, IMAGE_ALONE)
CURRENT = "1.36"
# The API's version by the first minor release of Kubernetes 1 that serves it.
API_VERSIONS = {36: "v1", 34: "v1beta1"}
# The namespaces that Istio's webhook injects, and this policy with it.
NAMESPACE_LABEL = ("istio-injection", "enabled")

# The flags whose values a pod decides, by the variable of the policy that has it.
FLAGS = {
    "proxy_uid": "-u",
    "istio_inbound_interception_mode": "-m",
    "istio_service_cidr": "-i",
    "istio_service_exclude_cidr": "-x",
    "istio_inbound_ports": "-b",
    "istio_local_exclude_ports": "-d",
    "istio_outbound_ports": "-q",
    "istio_local_outbound_ports_exclude": "-o",
    "kube_virt_interfaces": "-k",
    "istio_exclude_interfaces": "-c",
}


TPROXY = "variables.istio_inbound_interception_mode == 'TPROXY'"
VALIDATES_AS = f"({TPROXY} ? {PROXY_UID} : int(variables.proxy_uid))"
VALIDATES_IN = (
    f"(!({TPROXY}) && variables.proxy.size() > 0 && has(variables.proxy[0].securityContext) && "
    f"has(variables.proxy[0].securityContext.runAsGroup) ? variables.proxy[0].securityContext.runAsGroup : {PROXY_UID})"
)


class Expression(str):
    """A value that CEL works out, in the place of a literal."""

    __slots__ = ()


def printed(kind: str, request: InitSpec, kubernetes: str) -> str:
    """The policy and its binding as YAML. OptionError where an option or the version is wrong."""
    version = _api_version(kubernetes)
    lines = _image_policy(request) if kind == IMAGE_ALONE else _capture_policy(request)
    name = f"istio-init-{kind}"
    head = f"apiVersion: admissionregistration.k8s.io/{version}\nkind: MutatingAdmissionPolicy"
    return "\n".join(
        [
            head,
            f"metadata:\n  name: {name}",
            *lines,
            f"---\n{head}Binding",
            f"metadata:\n  name: {name}",
            f"spec:\n  policyName: {name}\n",
        ]
    )


def _api_version(kubernetes: str) -> str:
    major, _, minor = kubernetes.removeprefix("v").partition(".")
    minor = minor.partition(".")[0]
    if major != "1" or not (minor.isascii() and minor.isdigit()) or len(minor) > 4:
        raise OptionError("--kubernetes", kubernetes, f"not a version of Kubernetes such as {CURRENT}")
    for first, version in API_VERSIONS.items():
        if int(minor) >= first:
            return version
    raise OptionError(
        "--kubernetes", kubernetes, f"has no MutatingAdmissionPolicy: needs 1.{min(API_VERSIONS)} or later"
    )


# Every pod at its creation, as Istio's webhook has it.
PODS = """\
    resourceRules:
    - apiGroups: [""]
      apiVersions: [v1]
      operations: [CREATE]
      resources: [pods]"""


def _image_policy(request: InitSpec) -> list[str]:
    return [
        "spec:",
        "  # A pod whose image was not swapped still has Istio's, which captures as well.",
        "  failurePolicy: Ignore",
        "  reinvocationPolicy: IfNeeded",
        "  matchConstraints:",
        PODS,
        "  # No matchConditions: policies run before webhooks, and one that did not match is not called again.",
        "  variables:",
        *_variable("image", _text(request.image or IMAGE)),
        *_variable(
            "injected",
            f"{_listed('initContainers')}.filter(c, c.name in [{_text(INIT)}, {_text(VALIDATION)}])",
        ),
        "  mutations:",
        "  - patchType: ApplyConfiguration",
        "    applyConfiguration:",
        "      expression: |-",
        "        Object{spec: Object.spec{initContainers: variables.injected.map(c,",
        "          Object.spec.initContainers{name: c.name, image: variables.image})}}",
    ]


def _capture_policy(request: InitSpec) -> list[str]:
    defaults = dict(request.defaults)
    if request.validation:
        defaults |= {"run_validation": "true", "skip_rule_apply": "true"}
    fixed = container(options_of(defaults), request.image or IMAGE, account=(PROXY_UID, PROXY_UID))
    key, value = NAMESPACE_LABEL
    place = "'0'" if request.validation else "(variables.native ? '0' : '-')"
    if request.validation:
        # As the proxy, but for TPROXY, where the proxy is root.
        fixed["securityContext"] |= {"runAsUser": Expression(VALIDATES_AS), "runAsGroup": Expression(VALIDATES_IN)}
    return [
        "spec:",
        "  # A pod without rules would bypass its proxy: better none than that.",
        "  failurePolicy: Fail",
        "  reinvocationPolicy: IfNeeded",
        "  matchConstraints:",
        f"    namespaceSelector:\n      matchLabels:\n        {key}: {value}",
        PODS,
        "  matchConditions:",
        *_conditions(request),
        "  variables:",
        *_variables(request, defaults),
        "  mutations:",
        "  - patchType: JSONPatch",
        "    jsonPatch:",
        "      expression: |-",
        "        (has(object.spec.initContainers) ? [] :",
        "          [JSONPatch{op: 'add', path: '/spec/initContainers', value: []}]) +",
        f"        [JSONPatch{{op: 'add', path: '/spec/initContainers/' + {place}, value:",
        *(f"          {line}" for line in _container(fixed, _arguments(fixed["args"], defaults))),
        "        }]",
    ]


def _conditions(request: InitSpec) -> Iterable[str]:
    """When a pod is left alone: the questions of Istio's injector, and of the CNI plugin."""
    annotation, label = _value("annotations", INJECT), _value("labels", INJECT)
    names = f"[{_text(INIT)}, {_text(VALIDATION)}]"
    proxy = f"(object.spec.containers + {_listed('initContainers')}).filter(c, c.name == {_text(request.proxy)})"
    conditions = {
        "own-network": "!has(object.spec.hostNetwork) || !object.spec.hostNetwork",
        "namespace": f"!(request.namespace in {_texts(sorted(SYSTEM_NAMESPACES))})",
        "injection-not-refused": f"({_has('labels', INJECT)} ? {label} : {annotation}) != 'false'",
        "not-injected-yet": f"!{_listed('initContainers')}.exists(c, c.name in {names})",
        "sidecar-template": f"!{_has('annotations', TEMPLATES)} || "
        f"{_value('annotations', TEMPLATES)}.split(',').exists(t, t.trim() == {_text(SIDECAR)})",
        "mode": f"{_value('annotations', MODE)} != {_text(NO_CAPTURE)}",
        "sidecar-proxy": f"{proxy}.all(c, !has(c.args) || c.args.size() < 2 || c.args[0] != 'proxy' || "
        f"c.args[1] == {_text(SIDECAR)})",
        "envoy-enabled": f"!{proxy}.exists(c, has(c.env) && c.env.exists(e, e.name == 'DISABLE_ENVOY' && "
        "has(e.value) && e.value in ['1', 't', 'T', 'true', 'TRUE', 'True']))",
    }
    for name, expression in conditions.items():
        yield f"  - name: {name}"
        yield f"    expression: |-\n      {expression}"


def _variables(request: InitSpec, defaults: Mapping[str, str]) -> Iterable[str]:
    """The values that a pod's annotations and its proxy decide."""
    proxy = f"(object.spec.containers + {_listed('initContainers')}).filter(c, c.name == {_text(request.proxy)})"
    yield from _variable("annotations", "has(object.metadata.annotations) ? object.metadata.annotations : {}")
    yield from _variable("proxy", proxy)
    yield from _variable("native", f"{_listed('initContainers')}.exists(c, c.name == {_text(request.proxy)})")
    user = "variables.proxy[0].securityContext.runAsUser"
    yield from _variable(
        "proxy_uid",
        "variables.proxy.size() > 0 && has(variables.proxy[0].securityContext) && "
        f"has({user}) && {user} != 0\n        ? string({user}) : {_text(defaults.get('proxy_uid', '1337'))}",
    )
    mode = defaults.get("istio_inbound_interception_mode", "REDIRECT")
    yield from _variable("istio_inbound_interception_mode", _chosen((MODE,), mode))
    for field, names, default in VALUES:
        if field == "log_output_level":
            continue
        value = defaults.get(field, default)
        if value is not None:
            yield from _variable(field, _chosen(names, value))
    base = defaults.get("istio_local_exclude_ports")
    yield from _variable("excluded", _chosen((EXCLUDED_INBOUND,), ""))
    yield from _variable("status", _chosen((STATUS_PORT,), AGENT_PORT if base is None else ""))
    ports = _text(SIDECAR_PORTS if base is None else base)
    yield from _variable(
        "istio_local_exclude_ports",
        f"{ports} +\n        (variables.excluded == '' ? '' : ',' + variables.excluded) +\n"
        "        (variables.status in ['', '0'] || variables.status in variables.excluded.split(',')"
        " ? '' : ',' + variables.status)",
    )


def _arguments(fixed: list[str], defaults: Mapping[str, str]) -> str:
    """The container's arguments: those of all pods, and in between what a pod decides."""
    lists: list[list[str]] = [[]]
    parts: list[str] = []
    optional = [(FLAGS[field], names) for field, names, default in VALUES if default is None and field not in defaults]
    decided = {flag: f"variables.{field}" for field, flag in FLAGS.items()}
    words = iter(fixed)
    for word in words:
        if word.startswith("--log_output_level="):
            parts += [f"[{', '.join(lists.pop())}]", *(_absent_or(flag, names) for flag, names in optional)]
            lists.append([])
        lists[-1].append(_text(word))
        if word in decided:
            next(words)
            lists[-1].append(decided[word])
    return " +\n    ".join([*parts, f"[{', '.join(lists.pop())}]"])


def _absent_or(flag: str, names: tuple[str, ...]) -> str:
    """A flag with the value of the first of these annotations that a pod has; nothing where it has none."""
    expression = "[]"
    for name in reversed(names):
        at = f"variables.annotations[{_text(name)}]"
        expression = f"({_text(name)} in variables.annotations ? [{_text(flag)}, string({at})] : {expression})"
    return expression


# -- CEL.


def _container(fields: Mapping[str, Any], arguments: str) -> list[str]:
    """A container in CEL, whose types are named by their place (Object.spec.initContainers...)."""
    kind = "Object.spec.initContainers"
    lines = [f"{kind}{{"]
    for key, value in fields.items():
        lines.append(f"  {key}: {arguments if key == 'args' else _typed(f'{kind}.{key}', value)},")
    lines[-1] = lines[-1][:-1]
    return [inner for line in [*lines, "}"] for inner in line.split("\n")]


def _typed(kind: str, value: Any) -> str:  # noqa: ANN401 (a container's)
    if isinstance(value, dict):
        if kind.endswith((".requests", ".limits")):  # maps, and no types of their own
            return "{" + ", ".join(f"{_text(key)}: {_text(inner)}" for key, inner in value.items()) + "}"
        return kind + "{" + ", ".join(f"{key}: {_typed(f'{kind}.{key}', inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Expression):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return _texts(value) if isinstance(value, list) else str(value) if isinstance(value, int) else _text(str(value))


def _variable(name: str, expression: str) -> list[str]:
    return [f"  - name: {name}", f"    expression: |-\n      {expression}"]


def _chosen(names: tuple[str, ...], default: str) -> str:
    """The value of the first of these annotations that a pod has, or the default."""
    expression = _text(default)
    for name in reversed(names):
        at = f"variables.annotations[{_text(name)}]"
        # Both arms as strings: what a map of unknown type holds is no string to CEL's type checker.
        expression = f"string({_text(name)} in variables.annotations ? {at} : {expression})"
    return expression


def _has(field: str, key: str) -> str:
    return f"(has(object.metadata.{field}) && {_text(key)} in object.metadata.{field})"


def _value(field: str, key: str) -> str:
    """A label's or annotation's value; empty where a pod has none."""
    return f"({_has(field, key)} ? string(object.metadata.{field}[{_text(key)}]) : '')"


def _listed(field: str) -> str:
    return f"(has(object.spec.{field}) ? object.spec.{field} : [])"


def _texts(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _text(value: str) -> str:
    """A string literal of CEL."""
    escaped = "".join(
        f"\\{char}" if char in "\\'" else char if char.isprintable() else f"\\U{ord(char):08x}" for char in value
    )
    return f"'{escaped}'"
