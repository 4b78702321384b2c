"""Compares the pods of a node with what the plugin would do for them; finds pods that it missed, and can fix them.

A pod that started before the plugin was ready has a sidecar and no rules. What a pod is to have is decided as ADD
decides, compared as CHECK compares, and brought about by ADD itself: there is no second way.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.add import add
from istio_init.cni.plugin.call import PluginCall, in_namespace
from istio_init.cni.plugin.protocol import NAMESPACE, NEWEST, POD, UID, Request, message_of
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import CAPABILITY, settings
from istio_init.errors import InitError, KernelError
from istio_init.inspect import socket_capture
from istio_init.inspect.state import conformance, findings, inspect
from istio_init.kernel.host.tcp_connections import connections
from istio_init.options.json_data import to_data
from istio_init.record import Record
from istio_init.runner import access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import NoReturn

    from istio_init.cni.node.cri import Sandbox
    from istio_init.cni.plugin.decision import Decision
    from istio_init.inspect.state import Conformance
    from istio_init.options.table import Options

# Beside CAPTURED and PASSED.
UNCAPTURED, DRIFTED = "uncaptured", "drifted"
HOST, GONE, UNKNOWN = "host network", "gone", "unknown"
STATES = {"in place": CAPTURED, "drifted": DRIFTED, "absent": UNCAPTURED}
FIXABLE = frozenset({UNCAPTURED, DRIFTED})

# What containerd and CRI-O call a pod's interface.
INTERFACE = "eth0"
COMMAND = "repair"


class PodNetwork(Record):
    """The network that pods get: its name, and our plugin's entry in it."""

    name: str
    entry: Mapping[str, Any]


class Finding(Record):
    """The finding about one pod, and whether it has been fixed since.

    `differences` are all that is not as it should be. `connections` are those that are open in a pod which is
    uncaptured; they end when it is captured.
    """

    sandbox: Sandbox
    state: str
    why: str
    differences: tuple[str, ...] = ()
    connections: int = 0
    fixed: bool = False

    @property
    def wrong(self) -> bool:
        """Whether something is left to be done, or to be found out."""
        return self.state == UNKNOWN or (self.state in FIXABLE and not self.fixed)


def repair(sandboxes: Iterable[Sandbox], network: PodNetwork, *, fix: bool) -> Iterator[Finding]:
    """The finding for each pod, in order; with `fix`, pods that should be captured are captured."""
    for sandbox in sandboxes:
        yield _in_child(sandbox, partial(examine, sandbox, network, fix=fix))


def examine(sandbox: Sandbox, network: PodNetwork, *, fix: bool) -> Finding:
    """Inspect one pod, and fix it if requested. A fault of the pod, or its end, is a finding and not an error.

    A process that has entered a pod's user namespace can't come back from it, so this is for a child (`repair`).
    """
    if sandbox.host:
        return Finding(sandbox, HOST, "it uses the node's network")
    if not sandbox.ready:
        return Finding(sandbox, GONE, "its sandbox has ended")
    try:
        call = PluginCall(_request(sandbox, network), settings(_members(sandbox, network)), aloud="warn")
        with access.pinned(call.request.netns):
            finding = _inspect_pod(sandbox, call)
    except InitError as error:
        return Finding(sandbox, UNKNOWN, message_of(error))
    return _fixed(finding, call) if fix and finding.state in FIXABLE else finding


def _inspect_pod(sandbox: Sandbox, call: PluginCall) -> Finding:
    """A pod as it is; nothing is changed."""
    decision = call.decide()
    if decision.options is None:
        return Finding(sandbox, PASSED, decision.why)
    options = _with_own_backend(in_namespace(decision.options, call.request.netns), call)
    state, differences = _compared(options, call)
    finding = Finding(sandbox, STATES[state], "", differences)
    finding = finding.replace(why=_why(finding.state, decision, call))
    if finding.state != UNCAPTURED:
        return finding
    with access.namespace(options):
        return finding.replace(connections=connections())


def _with_own_backend(options: Options, call: PluginCall) -> Options:
    """The options, with the capture backend that the pod was captured by: it keeps that one as long as it lives."""
    record = sandbox_state.read(call.request.container, call.settings.run_dir)
    if record is None or not record.captured or record.options is None:
        return options
    return options.replace(capture_backend=record.options.capture_backend)


def _compared(options: Options, call: PluginCall) -> tuple[Conformance, tuple[str, ...]]:
    """How the pod's capture compares with the options, and what differs."""
    if options.capture_backend == "ebpf":
        by_sockets = socket_capture.inspect(options, call.log)
        return by_sockets.conformance, by_sockets.findings
    inspection = inspect(options, call.log)
    return conformance(inspection), findings(inspection)


def _why(state: str, decision: Decision, call: PluginCall) -> str:
    """The reason for a pod's state, as far as the plugin's record has it."""
    record = sandbox_state.read(call.request.container, call.settings.run_dir)
    if state == CAPTURED:
        return decision.why
    if record is None:
        return "no record of the plugin: the pod started before the plugin was ready"
    if not record.captured:
        return f"the plugin passed it through: {record.why}"
    if not record.options or to_data(record.options) != to_data(decision.options or record.options):
        return "the plugin was set up otherwise when it started"
    return f"the plugin captured it at {record.time}, and its rules have been changed since"


def _fixed(finding: Finding, call: PluginCall) -> Finding:
    """Capture a pod as an ADD would have, its state included."""
    try:
        with access.pinned(call.request.netns):
            add(call)
    except InitError as error:
        if not access.namespace_number(call.request.netns):
            sandbox_state.remove(call.request.container, call.settings.run_dir)
            return Finding(finding.sandbox, GONE, "its sandbox has ended")
        return finding.replace(why=f"{finding.why}; not fixed: {message_of(error)}")
    return finding.replace(fixed=True)


def _members(sandbox: Sandbox, network: PodNetwork) -> dict[str, Any]:
    """The configuration that the runtime would hand to the plugin for a pod."""
    members = dict(network.entry)
    capabilities = members.get("capabilities")
    if isinstance(capabilities, dict) and capabilities.get(CAPABILITY):
        members["runtimeConfig"] = {CAPABILITY: dict(sandbox.annotations)}
    return members


def _request(sandbox: Sandbox, network: PodNetwork) -> Request:
    """The call that the runtime would make for a pod; KernelError if its namespace can't be opened."""
    args = {POD: sandbox.name, NAMESPACE: sandbox.namespace, UID: sandbox.uid}
    return Request(COMMAND, NEWEST, network.name, sandbox.identity, _namespace_path(sandbox), INTERFACE, args)


def _namespace_path(sandbox: Sandbox) -> str:
    paths = [path for path in (sandbox.netns, f"/proc/{sandbox.pid}/ns/net" if sandbox.pid else "") if path]
    if not paths:
        raise KernelError("the runtime does not tell where its network namespace is")
    readable = next((path for path in paths if access.namespace_number(path)), None)
    if readable is None:
        raise KernelError(f"{' and '.join(paths)}: not there; has it ended meanwhile, or is this not mounted here?")
    return readable


def _in_child(sandbox: Sandbox, look: Callable[[], Finding]) -> Finding:
    """Call `look` in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _report(writing, sandbox, look)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    if not report:
        return Finding(sandbox, UNKNOWN, "the process that inspected it was killed")
    state, why, differences, cut, fixed = json.loads(report)
    return Finding(sandbox, state, why, tuple(differences), cut, fixed)


def _report(writing: int, sandbox: Sandbox, look: Callable[[], Finding]) -> NoReturn:
    """Write the result of `look` to a pipe, and end the process."""
    try:
        try:
            finding = look()
        except Exception as error:  # noqa: BLE001 (an error in one pod must not affect the others)
            finding = Finding(sandbox, UNKNOWN, f"internal error: {type(error).__name__}: {error}")
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump([finding.state, finding.why, finding.differences, finding.connections, finding.fixed], pipe)
    finally:
        os._exit(0)
