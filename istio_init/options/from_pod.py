"""A pod's manifest to the options that its rules are made from: `--from-pod`.

The options come from what makes the rules: the init container that applies them, with its own arguments and
environment; else the CNI plugin, where the pod was injected for it; else the container that Istio's injector would add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors import shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.formats import yaml_json
from istio_init.model import parsers
from istio_init.options.annotations import INJECT, STATUS
from istio_init.options.argv import stray_words
from istio_init.options.cni_pod import PROXY_CONTAINER, judge
from istio_init.options.container_call import call, parsed, rule_writer
from istio_init.options.injection import SPARING, injection, sparing_variable
from istio_init.options.manifest import INIT, VALIDATION
from istio_init.options.owners import misfits
from istio_init.options.privileges import Privileges, privileges
from istio_init.options.table import OPTIONS, PROXY_UID, PROXY_USER, Options, resolve
from istio_init.options.workload import only_workload, workloads
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.model.rules import Network
    from istio_init.options.podspec import Container
    from istio_init.options.table import Lookup
    from istio_init.options.workload import Workload

FLAG = "--from-pod"
# Istio's CNI plugin sets it on pods that it has enrolled.
AMBIENT = "ambient.istio.io/redirection"
DATAPLANE = "istio.io/dataplane-mode"
# Whom the names in a pod's arguments mean: its image's users, Istio's as ours, not this machine's.
IMAGE_ACCOUNTS = {"root": 0, PROXY_USER: PROXY_UID}


class Reading(Record):
    """A pod's manifest, and the options of its rules; `source` names who makes the rules.

    `misfits` are warnings, one line each: annotations without effect, and who runs in the pod beside the rules.
    `privileges` are those of the init container that makes the rules, None where another program makes them. `ips` are
    the addresses of a pod that runs.
    """

    options: Options
    workload: Workload
    source: str
    misfits: tuple[str, ...] = ()
    privileges: Privileges | None = None
    ips: tuple[Network, ...] = ()


class _Request(Record):
    """Who makes a pod's rules, the options' texts or parsed values by field, and the variables that count.

    `others` are further containers that make rules.
    """

    source: str
    texts: Mapping[str, str]
    environ: Mapping[str, str]
    values: Mapping[str, Any] = {}
    warnings: tuple[str, ...] = ()
    maker: Container | None = None
    others: tuple[Container, ...] = ()


class _Call(Record):
    """A container that makes rules: the options' texts by field, and the words that belong to no flag."""

    container: Container
    texts: Mapping[str, str]
    stray: tuple[str, ...] = ()


def from_pod(text: str, name: str, overrides: Mapping[str, str], lookup: Lookup) -> Options:
    """The Options that the pod in a manifest asks for; `overrides` win, texts by field. Errors name it by `name`.

    UsageError, one line that names the file, the container or annotation, and the value.
    """
    return read_pod(text, name, overrides, lookup).options


def read_pod(text: str, name: str, overrides: Mapping[str, str], lookup: Lookup) -> Reading:
    """The same as `from_pod`, with the workload that the manifest describes."""
    try:
        documents = yaml_json.load(text)
        workload = only_workload(documents)
        request = _request(workload, overrides)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from None

    def account(kind: str, user: str) -> int | None:
        return IMAGE_ACCOUNTS[user] if user in IMAGE_ACCOUNTS else lookup(kind, user)

    try:
        noticed = [*request.warnings]
        options = resolve({**request.texts, **overrides}, request.environ, account, request.values, noticed)
        if options.network_namespace and "network_namespace" not in overrides:
            noticed.append(
                f"{request.source}: --network-namespace: {shown(options.network_namespace, 100)}: a path in the "
                "container: it names no namespace here"
            )
            options = options.replace(network_namespace="")
    except OptionError as error:
        if error.source in {each.names() for each in OPTIONS if each.field in overrides}:
            raise
        raise OptionError(f"{name}: {request.source}: {error.source}", error.value, error.why) from None
    try:
        options = _with_nameservers(options, workload)
        warnings = (
            *noticed,
            *_maker_warnings(request),
            *_other_writers(workload, request),
            *_annotation_warnings(documents, workload),
            *misfits(workload, options),
        )
        allowed = privileges(request.maker, workload) if request.maker else None
        ips = workload.ips
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    return Reading(options, workload, request.source, warnings, allowed, ips)


def _with_nameservers(options: Options, workload: Workload) -> Options:
    """The options with the nameservers that the kubelet will write into the pod's resolv.conf, where all are known."""
    if not options.lacks_nameservers:
        return options
    try:
        servers = parsers.addresses(",".join(workload.nameservers))
    except ValueError as error:
        raise ValueError(f"dnsConfig: nameservers: {error}") from None
    return options.replace(dns_servers=servers or None)


def _maker_warnings(request: _Request) -> Iterator[str]:
    """What may change the rules of the container that makes them, and is not in the manifest or not read."""
    if request.maker is None:
        return
    if request.maker.body.get("envFrom"):
        yield f"{request.source}: envFrom: its variables are not in the manifest, and may set options"
    for other in request.others:
        yield f"{other.title} makes rules as well: the answer is for those of {request.source} alone"


def _other_writers(workload: Workload, request: _Request) -> Iterator[str]:
    """Containers that write rules which are not Istio's, as far as their commands show it."""
    for each in workload.residents():
        if each not in (request.maker, *request.others) and (program := rule_writer(each)):
            yield f"{each.title} calls {program}: the answer is without the rules that it writes"


def _annotation_warnings(documents: list[Any], workload: Workload) -> Iterator[str]:
    """Annotations that were meant to have an effect, and have none."""
    from istio_init.options.annotation_warnings import misplaced, misspelt

    yield from misspelt(workload.annotations)
    for document in documents:
        if any(each.path == workload.path for each in workloads(document)):
            yield from misplaced(document, workload.path)


def _request(workload: Workload, overrides: Mapping[str, str]) -> _Request:
    """What the pod's rules are made from. ValueError where it has none, or they can't be known."""
    if workload.out_of_reach:
        raise ValueError(f"{workload.out_of_reach}: nothing is captured in this pod")
    if workload.annotations.get(AMBIENT) == "enabled":
        raise ValueError(f"annotation {AMBIENT}: ambient mode: ztunnel captures this pod's traffic, without a sidecar")
    if calls := _rule_makers(workload):
        first, *others = calls
        title, environ = first.container.title, first.container.environment(_variables(overrides))
        warnings = [f"{title}: {stray_words(first.stray)}"] if first.stray else []
        return _Request(
            title, first.texts, environ, {}, (*warnings,), first.container, tuple(each.container for each in others)
        )
    if STATUS in workload.annotations or workload.init_container(VALIDATION):
        warnings = []
        why, values = judge(workload.description(PROXY_CONTAINER), {}, warnings)
        if why:
            raise ValueError(f"no init container makes rules, and the CNI plugin does not capture this pod: {why}")
        return _Request("annotations", {}, {}, {**values, "cni_mode": True}, tuple(warnings))
    injected = injection(workload)
    if injected.why_not:
        raise ValueError(injected.why_not)
    variables = _variables({**injected.texts, **overrides})
    environ = {k: v for k, v in injected.environ.items() if k in variables}
    return _Request("annotations", injected.texts, environ, warnings=tuple(_mode_warnings(workload)))


def _mode_warnings(workload: Workload) -> Iterator[str]:
    """The answer is for a sidecar; a label may mean ambient mode, which an injected sidecar comes before."""
    if workload.labels.get(DATAPLANE) == "ambient" and workload.labels.get(INJECT) != "true":
        yield (
            f"label {DATAPLANE}: 'ambient': without a sidecar, ztunnel captures this pod; the answer is for one that "
            f"Istio injects (label {INJECT}: 'true')"
        )


def refusal(workload: Workload) -> str:
    """Why nothing is captured in a pod; empty where something is. ValueError where that can't be read."""
    if workload.out_of_reach:
        return workload.out_of_reach
    if _rule_makers(workload):
        return ""
    if STATUS in workload.annotations or workload.init_container(VALIDATION):
        return judge(workload.description(PROXY_CONTAINER), {})[0]
    return injection(workload).why_not


def _rule_makers(workload: Workload) -> list[_Call]:
    """The calls of the init containers that apply rules; the one whose rules count first."""
    calls = []
    for container in workload.containers():
        named = container.name in {INIT, VALIDATION}
        if not (named or container.init):
            continue
        argv = call(container, named=named)
        if argv is None or (argv[:1] == ["--cleanup-only"] and container.name != INIT):
            continue
        stray: list[str] = []
        texts = parsed(container, argv, stray)
        # A container without a pod is the output of `istio-init manifest`, and has all options.
        if workload.piece or _applies(container, texts):
            calls.append(_Call(container, texts, (*stray,)))
    preferred = {INIT: 0, VALIDATION: 1}
    return sorted(calls, key=lambda each: preferred.get(each.container.name, 2))


def _applies(container: Container, texts: Mapping[str, str]) -> bool:
    """Whether a container changes rules, by its flags or else its variables."""
    if any(texts.get(field) in parsers.TRUE for field in SPARING):
        return False
    variables = {name for each in OPTIONS if each.field in SPARING - texts.keys() for name in each.variables}
    return not sparing_variable(container.environment(variables), texts)


def _variables(fields: Mapping[str, str]) -> set[str]:
    """The variables that count beside the options that are given."""
    return {variable for each in OPTIONS if each.field not in fields for variable in each.variables} | {"ENVOY_USER"}
