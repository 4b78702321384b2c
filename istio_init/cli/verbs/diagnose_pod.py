"""Where a diagnosis looks, and what was wanted there: from a manifest, a runtime, the plugin's record, or the rules."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from istio_init.cli.given_options import given_options
from istio_init.cli.input_file import read
from istio_init.cli.verbs import live_options
from istio_init.cli.verbs.diagnose_live import live
from istio_init.cli.verbs.diagnose_question import USUAL, Intent, Question
from istio_init.cli.verbs.subject import Where, placed, pod_addresses, saved_rules, subject
from istio_init.cni.node import cri
from istio_init.errors import InitError, printable, shown
from istio_init.errors_rare import UsageError
from istio_init.formats import yaml_json
from istio_init.inspect.diagnose import collect
from istio_init.inspect.diagnose.case import Resident, Situation
from istio_init.kernel.host import containers
from istio_init.kernel.host.grpc import GrpcChannel
from istio_init.model.rules import IPV6
from istio_init.options.annotations import STATUS
from istio_init.options.cni_pod import PodDescription, judge
from istio_init.options.from_pod import FLAG, read_pod, refusal
from istio_init.options.manifest import INIT, VALIDATION
from istio_init.options.table import OPTIONS, Options
from istio_init.options.workload import only_workload
from istio_init.planning.infer import against
from istio_init.planning.plan import build
from istio_init.runner import access
from istio_init.runner.defaults import account

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.options.workload import Workload

# Everything was given: subject() looks for no options.
OPTION_VARIABLES = frozenset(name for each in OPTIONS for name in each.variables) | {"ENVOY_USER"}
ALL_FIELDS = frozenset(each.field for each in OPTIONS)


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
    return live(question, options, request)


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
        return Intent(None, f"{name}", why, workload.host_network, who, workload.hosts)
    reading = read_pod(text, name, {}, account)
    return Intent(
        reading.options, f"{reading.source} of {printable(name)}", "", False, who, workload.hosts, _uninjected(workload)
    )


def _uninjected(workload: Workload) -> bool:
    """Whether a pod's manifest has nothing of Istio's injection."""
    names = {each.name for each in workload.containers()}
    return not names & {INIT, VALIDATION} and STATUS not in workload.annotations


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
    path = sandbox.netns
    if sandbox.pid and not os.path.exists(path):
        # In a container for debugging, the node's /run is somewhere else, and its processes are all there.
        path = containers.namespace_path(sandbox.pid)
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
        hosts=request.hosts, host_network=request.host_network, refusal=request.refusal, mode_none=request.mode_none,
    )  # fmt: skip


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
        differences=compared.differences, residents=request.residents, hosts=request.hosts,
        host_network=request.host_network, node=collect.node_signs(0, (), rulesets),
        refusal=request.refusal, mode_none=request.mode_none, live=True,
    )  # fmt: skip
