"""Where a diagnosis looks, and what was wanted there: from a manifest, a runtime, the plugin's record, or the rules."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from istio_init.cli.given_options import given_options
from istio_init.cli.input_file import read
from istio_init.cli.verbs import live_options
from istio_init.cli.verbs.subject import Where, placed, pod_addresses, saved_rules, subject
from istio_init.cni.node import cri
from istio_init.errors import InitError, printable, shown
from istio_init.errors_rare import UsageError
from istio_init.formats import yaml_json
from istio_init.inspect.diagnose import collect
from istio_init.inspect.diagnose.case import Resident, Situation
from istio_init.kernel.host import containers
from istio_init.kernel.host.grpc import GrpcChannel
from istio_init.kernel.host.netns import inode
from istio_init.kernel.netlink import conntrack
from istio_init.kernel.probe.facts import foreign_tables, sysctls
from istio_init.log import Log
from istio_init.model import parsers
from istio_init.model.rules import IPV6
from istio_init.options.cni_pod import PodDescription, judge
from istio_init.options.from_pod import FLAG, read_pod, refusal
from istio_init.options.manifest import INIT, VALIDATION
from istio_init.options.table import OPTIONS, Options
from istio_init.options.workload import only_workload
from istio_init.planning.infer import against
from istio_init.planning.plan import build
from istio_init.record import Record
from istio_init.runner import access
from istio_init.runner.defaults import account, resolve_defaults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.cli.verbs.live_options import TableReading

# What Istio's injection asks for, where nothing else is known: a pod without rules that is asked about.
USUAL = Options(
    istio_inbound_ports=parsers.ALL,
    istio_service_cidr=parsers.ALL,
    istio_local_exclude_ports=parsers.ports("15090,15021,15020"),
)
# Everything was given: subject() looks for no options.
OPTION_VARIABLES = frozenset(name for each in OPTIONS for name in each.variables) | {"ENVOY_USER"}
ALL_FIELDS = frozenset(each.field for each in OPTIONS)


class Question(Record):
    """What a command line asks about: the place, as flags name it."""

    pod: str = ""
    container: str | None = None
    pid: int | None = None
    netns: str = ""
    manifest: str = ""
    save: str = ""
    cri_socket: str = ""

    @property
    def places(self) -> list[str]:
        """The flags that name a place."""
        named = {
            "POD": self.pod, "--container": self.container, "--pid": self.pid, "--netns": self.netns,
            "--from-save": self.save,
        }  # fmt: skip
        return [flag for flag, value in named.items() if value not in {None, ""}]


class Intent(Record):
    """What was wanted of a pod: options and their source, or why nothing is captured in it."""

    options: Options | None = None
    source: str = ""
    refusal: str = ""
    host_network: bool = False
    residents: tuple[Resident, ...] = ()


def situation(question: Question) -> Situation:
    """All that is known about the pod. InitError where it can't be known; UsageError for contradicting flags."""
    if len(question.places) > 1:
        raise UsageError(f"{', '.join(question.places)}: use only one of them")
    given_options.set(ALL_FIELDS)
    request = of_manifest(question.manifest) if question.manifest else Intent()
    if question.save:
        return _of_dump(question, request)
    if question.manifest and not question.places:
        return _of_manifest(request)
    options = Options(network_namespace=question.netns, log_output_level="none")
    if question.pod:
        options, from_runtime = _of_runtime(question, options)
        request = request if question.manifest else from_runtime
    else:
        options = placed(options, Where(True, question.pid, question.container))
        request = request if question.manifest else _of_namespace(question, options)
    return _live(question, options, request)


def of_manifest(path: str) -> Intent:
    """What a pod's manifest wants."""
    text, name = read(FLAG, path), "standard input" if path == "-" else path
    try:
        workload = only_workload(yaml_json.load(text))
        why = refusal(workload)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from None
    who = tuple(Resident(each.container, each.uid, each.gid) for each in workload.owners() if not each.init)
    if why:
        return Intent(None, f"{name}", why, workload.host_network, who)
    reading = read_pod(text, name, {}, account)
    return Intent(reading.options, f"{reading.source} of {printable(name)}", "", False, who)


def _of_runtime(question: Question, options: Options) -> tuple[Options, Intent]:
    """The namespace of a pod that the node's runtime knows by name, and what its annotations want."""
    namespace, slash, name = question.pod.rpartition("/")
    with GrpcChannel(cri.endpoint(question.cri_socket, os.environ)) as channel:
        named = [
            each
            for each in cri.sandboxes(channel)
            if each.ready and each.name == name and (not slash or each.namespace == namespace)
        ]
        started = _started(channel, named[0].identity) if len(named) == 1 else None
    if not named:
        raise InitError(
            f"POD: {shown(question.pod)}: no running pod of that name on this node; name it NAMESPACE/POD, on its node"
        )
    if len(named) > 1:
        every = ", ".join(sorted(f"{each.namespace}/{each.name}" for each in named))
        raise InitError(f"POD: {shown(question.pod)}: {len(named)} pods have that name ({every}): give the namespace")
    [sandbox] = named
    path = sandbox.netns or (containers.namespace_path(sandbox.pid) if sandbox.pid else "")
    if sandbox.host:
        return options, Intent(None, "the runtime", "hostNetwork: the pod is in the node's own network", True)
    if not path:
        raise InitError(f"POD: {shown(question.pod)}: the runtime does not name its network namespace; use --pid")
    return options.replace(network_namespace=path), started or _of_annotations(sandbox.annotations)


def _started(channel: GrpcChannel, sandbox: str) -> Intent | None:
    """What the arguments of the init container want, as the runtime started it; None where it says nothing."""
    try:
        started = cri.started_as(channel, sandbox, (INIT, VALIDATION))
        if started is None:
            return None
        words, environment = started
        variables = [each.partition("=") for each in environment]
        container = {
            "name": INIT,
            "args": words,
            "env": [{"name": name, "value": value} for name, _, value in variables if name in OPTION_VARIABLES],
        }
        pod = {"kind": "Pod", "metadata": {"name": "pod"}, "spec": {"initContainers": [container]}}
        reading = read_pod(json.dumps(pod), "the runtime", {}, account)
    except InitError:
        return None
    return Intent(reading.options, "the init container's arguments, from the runtime")


def _of_namespace(question: Question, options: Options) -> Intent:
    """What the runtime says of the pod with this network namespace; nothing where no runtime, or none, knows it."""
    if question.container is None and question.pid is None:
        return Intent()
    try:
        number = access.namespace_number(options.network_namespace)
        with GrpcChannel(cri.endpoint(question.cri_socket, os.environ)) as channel:
            for each in cri.sandboxes(channel):
                if each.ready and each.netns and not each.host and access.namespace_number(each.netns) == number:
                    return _started(channel, each.identity) or _of_annotations(each.annotations)
    except InitError:
        if question.cri_socket:
            raise
    return Intent()


def _of_annotations(annotations: Mapping[str, str]) -> Intent:
    """What the annotations that the runtime has of a pod want; nothing where Istio's injection left none."""
    try:
        why, values = judge(PodDescription(annotations), {})
    except InitError as error:
        return Intent(None, "annotations", str(error))
    if why:
        # Without the injection's annotation a runtime's list says nothing about an init container.
        return Intent(None, "annotations", why) if "NONE" in why else Intent()
    return Intent(Options(**{**values, "cni_mode": True}), "the pod's annotations")


def _of_manifest(request: Intent) -> Situation:
    """A manifest alone: the rules are those that it asks for."""
    options = request.options or USUAL
    about = subject(options, Where(), pod_addresses(""))
    plan = build(about.options)
    return Situation(
        about.options, request.source, inferred=False, plan=plan, rulesets=about.rulesets, chosen=about.rulesets,
        backends=("manifest",), facts=about.facts, envoy=about.envoy, residents=request.residents, named_pod=True,
        host_network=request.host_network, refusal=request.refusal, mode_none=_none(request),
    )  # fmt: skip


def _none(request: Intent) -> str:
    return f"{request.source}: {request.refusal}" if "NONE" in request.refusal else ""


def _live(question: Question, options: Options, request: Intent) -> Situation:
    with access.namespace(options):
        number = inode()
        processes = collect.running()
        devices, (who, mode), sockets = collect.interfaces(), collect.residents(processes), collect.sockets(processes)
        readings = tuple(live_options.readings(options))
        request = _recorded(request, number)
        routing = access.router().read()
        settings, usage, foreign = sysctls(), conntrack.usage(), foreign_tables()
    if not readings:
        _require_no_sockets_capture(options)
    desired, source = _desired(request, readings, options)
    desired = _settled(desired.replace(network_namespace=options.network_namespace))
    about = subject(desired, Where(live=True), with_foreign_tables=True)
    plan = build(about.options)
    chosen = readings[0].rulesets if readings else ()
    compared = against(about.options, chosen, routing, native=bool(readings) and readings[0].backend == "native")
    residents = who or request.residents
    envoy = next((each for each in residents if each.is_proxy and each.uid is not None and each.name == "envoy"), None)
    return Situation(
        about.options, source, inferred=request.options is None, plan=plan, rulesets=about.rulesets, chosen=chosen,
        backends=tuple(each.backend for each in readings), facts=about.facts,
        envoy=about.envoy.replace(uid=envoy.uid, gid=envoy.gid) if envoy else about.envoy,
        differences=compared.differences, missing=compared.missing, interfaces=devices, sysctls=settings,
        residents=residents, listening=sockets.listening, bound=sockets.bound, listeners=sockets.listeners,
        connections=sockets.connections, processes=len(processes),
        tracked=usage, nameservers=collect.nameservers(who), foreign_tables=foreign,
        node=collect.node_signs(number, devices, about.rulesets, sidecar=any(each.is_proxy for each in who)),
        named_pod=bool(question.pod or question.container), host_network=request.host_network,
        refusal=request.refusal, mode_none=mode or _none(request), live=True,
    )  # fmt: skip


def _require_no_sockets_capture(options: Options) -> None:
    """InitError for a pod that is captured by eBPF, without a rule."""
    from istio_init.kernel.ebpf import pods
    from istio_init.kernel.ebpf.installation import Installation, root_cgroup

    try:
        installation = Installation(root_cgroup())
        captured = installation.installed and pods.is_captured(installation, pods.cookie_of(options.network_namespace))
    except InitError:
        return
    if captured:
        raise InitError("the pod is captured by eBPF, without rules: use istio-init check --capture-backend ebpf")


def _settled(options: Options) -> Options:
    """The options with DNS servers where the namespace's can't be read."""
    if options.lacks_nameservers:
        try:
            return resolve_defaults(options, Log("none"))
        except InitError:
            return options.replace(dns_servers=())
    return options


def _recorded(request: Intent, number: int) -> Intent:
    """What the CNI plugin's record of the sandbox says, where nothing nearer to the pod does."""
    if request.options is not None or request.refusal or (state := live_options.recorded(number)) is None:
        return request
    where = f"the CNI plugin's record of {state.namespace}/{state.pod}"
    if state.options is None:
        return request.replace(source=where, refusal=f"{where}: passed through: {state.why}")
    return request.replace(options=state.options, source=where)


def _desired(request: Intent, readings: tuple[TableReading, ...], options: Options) -> tuple[Options, str]:
    """The options that the rules are compared with, and where they come from."""
    if request.options is not None:
        return request.options, request.source
    if not readings:
        return USUAL, "Istio's usual ones: nothing says which were wanted"
    with access.namespace(options):
        inferred = live_options.in_backend(readings[0], options)
    return inferred, f"inferred from the rules: {live_options.command_line(readings[0].inference.options)}"


def _of_dump(question: Question, request: Intent) -> Situation:
    """A dump: who listens, and which addresses there are, is not known."""
    rulesets = saved_rules(question.save)
    inference = live_options.read_dump(rulesets)
    options = request.options or (inference.options if inference else USUAL)
    if options.enable_ipv6 is None:
        options = options.replace(enable_ipv6=any(each.family == IPV6 for each in rulesets))
    about = subject(options, Where(), pod_addresses("")).replace(rulesets=rulesets)
    compared = against(about.options, rulesets, None)
    if inference and request.options is None:
        compared = inference
        source = f"inferred from the rules: {live_options.command_line(inference.options)}"
    else:
        source = request.source or "Istio's usual ones: nothing says which were wanted"
    return Situation(
        about.options, source, inferred=request.options is None, plan=build(about.options), rulesets=rulesets,
        chosen=rulesets, backends=("dump",) if inference else (), facts=about.facts, envoy=about.envoy,
        differences=compared.differences, residents=request.residents, host_network=request.host_network,
        node=collect.node_signs(0, (), rulesets), refusal=request.refusal, mode_none=_none(request), live=True,
    )  # fmt: skip
