"""A diagnosis of a running pod: its rules, or its capture by eBPF, its processes and their sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.verbs import live_options
from istio_init.cli.verbs.diagnose_question import USUAL
from istio_init.cli.verbs.subject import Where, live_facts, subject, with_lookup
from istio_init.errors import InitError
from istio_init.inspect.diagnose import collect, collect_sockets
from istio_init.inspect.diagnose.case import Situation
from istio_init.kernel.host.netns import inode
from istio_init.kernel.netlink import conntrack
from istio_init.kernel.probe.facts import foreign_tables, sysctls
from istio_init.log import Log
from istio_init.planning.infer import against
from istio_init.planning.plan import build
from istio_init.record import Record
from istio_init.runner import access
from istio_init.runner.defaults import resolve_defaults
from istio_init.simulate.path import proxy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.cli.verbs.diagnose_question import Intent, Question
    from istio_init.cli.verbs.live_options import TableReading
    from istio_init.inspect.diagnose.case import Resident, SocketCaptureState
    from istio_init.kernel.probe.facts import ForeignTable
    from istio_init.model.counters import Usage
    from istio_init.model.routing import RoutingEntry
    from istio_init.options.table import Options
    from istio_init.simulate.path import Proxy

OWN_NAMESPACE = "/proc/thread-self/ns/net"
EBPF = "ebpf"


class LiveReading(Record):
    """What was read inside of the namespace, and the node's part of capture by eBPF."""

    number: int
    interfaces: tuple[str, ...]
    residents: tuple[Resident, ...]
    processes: int
    mode: str
    sockets: collect.Sockets
    readings: tuple[TableReading, ...]
    routing: tuple[RoutingEntry, ...]
    sysctls: Mapping[str, int]
    tracked: Usage | None
    foreign_tables: tuple[ForeignTable, ...]
    capture: SocketCaptureState | None


def live(question: Question, options: Options, request: Intent) -> Situation:
    """All that is known about a namespace. InitError where it can't be known."""
    facts = _read(options)
    request = _recorded(request, facts.number)
    if not facts.readings and (facts.capture or _wants_capture(request)):
        about = _of_capture(facts, request, options)
    else:
        about = _of_rules(facts, request, options)
    return about.replace(
        interfaces=facts.interfaces, sysctls=facts.sysctls, listening=facts.sockets.listening,
        bound=facts.sockets.bound, listeners=facts.sockets.listeners, connections=facts.sockets.connections,
        processes=facts.processes, tracked=facts.tracked, nameservers=collect.nameservers(facts.residents),
        foreign_tables=facts.foreign_tables, capture=about.capture or facts.capture,
        node=collect.node_signs(
            facts.number, facts.interfaces, about.rulesets, sidecar=any(each.is_proxy for each in facts.residents)
        ),
        named_pod=bool(question.pod or question.container), host_network=request.host_network,
        named_place=bool(question.places), hosts=request.hosts, uninjected=request.uninjected,
        refusal=request.refusal, mode_none=facts.mode or request.mode_none, live=True,
    )  # fmt: skip


def _read(options: Options) -> LiveReading:
    with access.namespace(options):
        processes = collect.running()
        residents, mode = collect.residents(processes)
        return LiveReading(
            inode(), collect.interfaces(), residents, len(processes), mode, collect.sockets(processes),
            tuple(live_options.readings(options)), access.router().read(), sysctls(), conntrack.usage(),
            foreign_tables(), collect_sockets.state(OWN_NAMESPACE),
        )  # fmt: skip


def _of_rules(facts: LiveReading, request: Intent, options: Options) -> Situation:
    readings = facts.readings
    desired, source = _desired(request, readings, options)
    desired = _settled(desired.replace(network_namespace=options.network_namespace))
    about = subject(desired, Where(live=True), with_foreign_tables=True)
    chosen = readings[0].rulesets if readings else ()
    compared = against(about.options, chosen, facts.routing, native=bool(readings) and readings[0].backend == "native")
    residents = facts.residents or request.residents
    backends = tuple(each.backend for each in readings)
    if readings and facts.capture and facts.capture.captured:
        backends = (*backends, EBPF)
    return Situation(
        about.options, source, inferred=request.options is None, plan=build(about.options), rulesets=about.rulesets,
        chosen=chosen, backends=backends, facts=about.facts, envoy=_as_it_runs(about.envoy, residents),
        differences=compared.differences, missing=compared.missing, residents=residents,
    )  # fmt: skip


def _of_capture(facts: LiveReading, request: Intent, options: Options) -> Situation:
    """A pod without rules: the programs ask the questions of the plan's rules, in their order."""
    capture, desired = facts.capture, request.options
    entry = capture.options if capture else None
    source = request.source
    if desired is None:
        desired = entry or USUAL.replace(capture_backend=EBPF)
        source = "Istio's usual ones: nothing says which were wanted"
        if entry:
            source = f"read from the node's maps (eBPF): {live_options.command_line(entry)}"
    desired = _settled(desired.replace(network_namespace=options.network_namespace))
    with access.namespace(options):
        desired = resolve_defaults(desired, Log("none"))
        network = with_lookup(live_facts())
    if capture and request.options is not None:
        capture = capture.replace(differences=collect_sockets.differences(desired, Log("none")))
    plan, residents = build(desired), facts.residents or request.residents
    return Situation(
        desired, source, inferred=request.options is None, plan=plan, rulesets=plan.rulesets, chosen=plan.rulesets,
        backends=(EBPF,) if capture and capture.captured else (), facts=network,
        envoy=_as_it_runs(proxy(desired), residents), residents=residents, capture=capture,
        missing=tuple(entry for entry in plan.routing if entry not in facts.routing),
    )  # fmt: skip


def _wants_capture(request: Intent) -> bool:
    return request.options is not None and request.options.capture_backend == EBPF


def _as_it_runs(envoy: Proxy, residents: tuple[Resident, ...]) -> Proxy:
    """The proxy with the ids of its process, where there is one."""
    running = next((each for each in residents if each.name == "envoy" and each.uid is not None), None)
    return envoy.replace(uid=running.uid, gid=running.gid) if running else envoy


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
        desired = live_options.in_backend(readings[0], options)
    return desired, f"inferred from the rules: {live_options.command_line(readings[0].inference.options)}"
