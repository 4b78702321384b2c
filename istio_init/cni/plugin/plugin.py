"""The CNI plugin `istio-init-cni`: ADD, DEL, CHECK, GC, STATUS and VERSION over the commands that all others use.

Standard output has only the result; what libraries print goes to standard error.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import sys
import time

from istio_init.cni.plugin import protocol, sandbox_state
from istio_init.cni.plugin.decision import Decision, decide
from istio_init.cni.plugin.fast_json import decode, encode
from istio_init.cni.plugin.log import PodLog
from istio_init.cni.plugin.protocol import (
    CONFIGURATION,
    DRIFTED,
    FAULT,
    NAMESPACE,
    POD,
    TRY_AGAIN,
    UID,
    UNAVAILABLE,
    VERSIONS,
    PluginError,
    Request,
)
from istio_init.cni.plugin.sandbox_state import PASSED, SandboxState
from istio_init.cni.plugin.settings import NONE, REQUIRED, settings
from istio_init.errors import InitError, Interrupted
from istio_init.log import now
from istio_init.options.annotations import suspicious
from istio_init.options.table import Options
from istio_init.runner import access, defaults
from istio_init.runner.run import Interrupts, perform

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from istio_init.cni.plugin.agent_client import AgentClient
    from istio_init.cni.plugin.settings import Api, Settings
    from istio_init.options.cni_pod import PodDescription
else:
    # The C half of signal; the module around it imports enum.
    import _signal

# The deadline of a command. Longer than --wait and all attempts at the Kubernetes API together.
SECONDS = 100.0
ATTACHMENTS = "cni.dev/valid-attachments"
# What a log calls the decision that there was none: what the pod asks for can't be understood.
REFUSED = "refused"


class Call:
    """One call: the request, the settings, and the log with the pod's name."""

    def __init__(self, request: Request, chosen: Settings, aloud: str = "debug") -> None:
        """`aloud` is the level up to which the log goes to standard error as well."""
        self.request, self.settings = request, chosen
        self.log = PodLog(chosen.log_level, chosen.log_file, chosen.log_bytes, aloud)
        self.log.know(
            command=request.command,
            pod=request.args.get(POD, ""),
            namespace=request.args.get(NAMESPACE, ""),
            sandbox=request.container,
        )
        self._agent: AgentClient | None = None
        if chosen.agent != NONE:
            from istio_init.cni.plugin.agent_client import AgentClient

            self._agent = AgentClient(chosen.agent_socket)
            self.log.kept = []

    def decide(self) -> Decision:
        """The decision for the pod, which each following log line has."""
        if access.is_own_namespace(self.request.netns):
            decision = Decision(PASSED, "the sandbox uses the node's network")
        else:
            try:
                decision = decide(self.request, self.settings, self._fetch, defaults.account, self._ask)
            except InitError as error:
                self.log.know(decision=REFUSED, why=str(error))
                raise
        self.log.know(decision=decision.decision, why=decision.why)
        if decision.options is not None and suspicious(self.settings.annotations or {}):
            from istio_init.options.annotation_warnings import misspelt

            for warning in misspelt(self.settings.annotations or {}):
                self.log.warn(warning)
        return decision

    def _fetch(self, api: Api, namespace: str, name: str) -> PodDescription:
        from istio_init.cni.plugin.kubernetes_api import pod

        return pod(api, namespace, name, self.log)

    def _ask(self, namespace: str, name: str, uid: str) -> PodDescription | None:
        """The pod from the node agent; None if it does not answer and is optional."""
        if self._agent is None:
            return None
        try:
            return self._agent.pod(namespace, name, uid)
        except protocol.PluginError as error:
            if self.settings.agent == REQUIRED or error.code != TRY_AGAIN:
                raise
            self.log.warn(f"{error}; decided without it")
            return None

    def report(self, code: int, begin: float) -> None:
        """Report the outcome of the call to the node agent: the CNI error's code, or 0; `begin` is the call's start."""
        if self._agent is not None:
            outcome = {"command": self.request.command, "code": code, "seconds": time.monotonic() - begin}
            for fact in ("pod", "namespace", "sandbox", "decision"):
                outcome[fact] = self.log.facts.get(fact, "")
            self._agent.report(outcome, self.log.kept or [])

    def state(self) -> SandboxState | None:
        """The sandbox's state; each following log line has its decision."""
        state = sandbox_state.read(self.request.container, self.settings.run_dir)
        if state is not None:
            self.log.know(decision=state.decision, why=state.why)
        return state


def add(call: Call) -> str:
    """Program the sandbox's namespace as its pod asks for; returns prevResult as it came."""
    begin, request = time.monotonic(), call.request
    decision = call.decide()
    if decision.options is not None:
        decision = decision.replace(options=_with_coming_ipv6(call, decision.options))
    # Before the rules, so that DEL knows what to clean up even if this process is killed.
    sandbox_state.write(_new_state(call, decision), call.settings.run_dir)
    if decision.options is not None:
        _perform(in_namespace(decision.options, request.netns).replace(reconcile=True), call, begin)
    else:
        call.log.info("passed through, untouched")
    return request.previous or encode({"cniVersion": request.version, "dns": {}})


def _with_coming_ipv6(call: Call, options: Options) -> Options:
    """The options with IPv6, if prevResult gives the pod such an address and the namespace has no address yet.

    Whether a pod has IPv6 is otherwise seen by the namespace's addresses, when the rules are made.
    """
    if options.enable_ipv6 is not None or ":" not in call.request.previous:
        return options
    from istio_init.cni.plugin.result import addresses
    from istio_init.kernel.netlink.router import has_address, has_ipv6

    coming = addresses(decode(call.request.previous))
    if not has_ipv6(coming, dual_stack=options.dual_stack):
        return options
    with access.namespace(in_namespace(options, call.request.netns)):
        if has_address(access.router().addresses()):
            return options
    call.log.info("the namespace has no addresses yet: IPv6 rules are made for those in prevResult")
    return options.replace(enable_ipv6=True)


def in_namespace(options: Options, netns: str) -> Options:
    """The options of a sandbox with the path of its network namespace."""
    return options.replace(network_namespace=netns)


def _new_state(call: Call, decision: Decision) -> SandboxState:
    request, before = call.request, sandbox_state.read(call.request.container, call.settings.run_dir)
    attachments = before.attachments if before else ()
    attachment = request.network, request.interface
    return SandboxState(
        request.container, decision.decision, decision.why,
        request.args.get(POD, ""), request.args.get(NAMESPACE, ""), request.args.get(UID, ""),
        request.netns, access.namespace_number(request.netns),
        decision.options,
        attachments if attachment in attachments else (*attachments, attachment),
        now(),
    )  # fmt: skip


def _perform(options: Options, call: Call, begin: float) -> None:
    """Apply or clean up; changes are rolled back if that fails or a signal ends it."""
    with Interrupts() as interrupts:
        perform(options, {}, call.log, begin, interrupts)


def delete(call: Call) -> str:
    """Remove Istio's rules and the state. Missing ones are no error, nor are those that can't be removed."""
    request = call.request
    try:
        state = call.state()
    except sandbox_state.SandboxStateError as error:
        call.log.warn(str(error))
        state = None
    if state is not None:
        left = tuple(each for each in state.attachments if each != (request.network, request.interface))
        if left:
            # The container stays, on another network: its traffic is still to be captured.
            sandbox_state.write(state.replace(attachments=left), call.settings.run_dir)
            return ""
    if request.netns and (state is None or state.captured):
        _clean(call, state, request.netns)
    sandbox_state.remove(request.container, call.settings.run_dir)
    return ""


def _clean(call: Call, state: SandboxState | None, netns: str) -> None:
    """Remove Istio's rules from a namespace, if it still exists under this path."""
    number = access.namespace_number(netns)
    if not number or access.is_own_namespace(netns) or (state and state.inode and state.inode != number):
        call.log.info("the sandbox's namespace is gone")
        if state and state.options and state.options.capture_backend == "ebpf":
            from istio_init.runner import socket_capture

            socket_capture.collect()
        return
    try:
        _perform(_cleanup(state, netns), call, time.monotonic())
    except InitError as error:
        # An error would keep the runtime from removing the pod, and the rules go with the namespace.
        call.log.warn(f"not cleaned up: {protocol.message_of(error)}")


def _cleanup(state: SandboxState | None, netns: str) -> Options:
    """The options of a run that removes the rules of a recorded state."""
    options = state.options if state and state.options else Options(cni_mode=True)
    return in_namespace(options, netns).replace(cleanup_only=True)


def check(call: Call) -> str:
    """Compare the rules in the namespace with those that ADD was to make; PluginError where they differ."""
    request, state = call.request, call.state()
    if state is not None and not state.captured:
        return ""
    options = state.options if state else None
    if options is None:
        options = call.decide().options
        if options is None:
            return ""
    differing = _differences(in_namespace(options, request.netns), call)
    subject = "capture by eBPF in {} is" if options.capture_backend == "ebpf" else "the rules in {} are"
    if differing:
        more = f"; and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise PluginError(
            DRIFTED,
            f"{subject.format(request.netns)} not as ADD made them: {differing[0]}{more}",
            "; ".join(differing),
        )
    return ""


def _differences(options: Options, call: Call) -> tuple[str, ...]:
    """How the namespace that the options name differs from what they ask for."""
    if options.capture_backend == "ebpf":
        from istio_init.inspect import socket_capture

        return socket_capture.inspect(options, call.log).findings
    from istio_init.inspect.state import findings, inspect

    return findings(inspect(options, call.log))


def collect(call: Call) -> str:
    """GC: clean up after sandboxes that the runtime no longer has on this network, and delete their state."""
    valid = _valid(call.request)
    for container in sandbox_state.containers(call.settings.run_dir):
        try:
            state = sandbox_state.read(container, call.settings.run_dir)
        except sandbox_state.SandboxStateError as error:
            call.log.warn(str(error))
            continue
        if state is None:
            continue
        call.log.know(
            pod=state.pod, namespace=state.namespace, sandbox=container, decision=state.decision, why=state.why
        )
        network = call.request.network
        left = tuple(each for each in state.attachments if each[0] != network or (container, each[1]) in valid)
        if left == state.attachments:
            continue
        if left:
            sandbox_state.write(state.replace(attachments=left), call.settings.run_dir)
            continue
        call.log.info("the sandbox is gone")
        if state.captured:
            _clean_in_child(call, state)
        sandbox_state.remove(container, call.settings.run_dir)
    return ""


def _clean_in_child(call: Call, state: SandboxState) -> None:
    """Clean up in a child process: a process that entered a pod's user namespace can't leave it again."""
    child = os.fork()
    if not child:
        try:
            with access.pinned(state.netns):
                _clean(call, state, state.netns)
        finally:
            os._exit(0)  # noqa: SLF001 (that is its name)
    os.waitpid(child, 0)


def _valid(request: Request) -> set[tuple[str, str]]:
    """The attachments that a runtime still has; PluginError where it does not say."""
    if ATTACHMENTS not in request.members:
        raise PluginError(CONFIGURATION, f"{ATTACHMENTS}: missing; without it everything would be removed")
    listed = request.members[ATTACHMENTS] or []
    try:
        return {(str(each["containerID"]), str(each["ifname"])) for each in listed}
    except (TypeError, KeyError):
        raise PluginError(CONFIGURATION, f"{ATTACHMENTS}: not a list of containerID and ifname") from None


def status(call: Call) -> str:
    """Whether an ADD would work on this node: the doctor's checks of capabilities, tables and extensions."""
    from istio_init.cni.plugin.readiness import troubles

    problems = troubles(call.settings)
    if problems:
        raise PluginError(UNAVAILABLE, f"pods can't be captured on this node: {problems[0]}", "; ".join(problems))
    return ""


def version(request: Request) -> str:
    """The supported versions of the specification."""
    return encode({"cniVersion": request.version, "supportedVersions": list(VERSIONS)})


VERBS: dict[str, Callable[[Call], str]] = {
    "ADD": add,
    "DEL": delete,
    "CHECK": check,
    "GC": collect,
    "STATUS": status,
}


class Deadline:
    """Within its `with`, a command that takes too long is interrupted, and what it has changed is undone.

    A runtime waits for minutes, and starts no other pod's sandbox in the meantime.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = _signal.signal(_signal.SIGALRM, self._expire)
        _signal.setitimer(_signal.ITIMER_REAL, SECONDS)

    def __exit__(self, *_: object) -> None:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, self._before)

    def _expire(self, *_: object) -> None:
        what = f"{self.command} took longer than {SECONDS:g} s and was interrupted"
        raise Interrupted(f"{what}; see the node's load, and the length of the pod's lists")


def answer(environ: Mapping[str, str], data: bytes) -> tuple[int, str]:
    """The exit code, and what belongs on standard output."""
    call, begin = None, time.monotonic()
    try:
        request = protocol.read(environ, data)
        if request.command == "VERSION":
            return 0, version(request) + "\n"
        call = Call(request, settings(request.members))
        with Deadline(request.command), access.pinned(request.netns):
            result = VERBS[request.command](call)
    except InitError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 (a runtime wants an answer, whatever is wrong)
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
        failure = PluginError(
            FAULT, f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}", place
        )
    else:
        call.report(0, begin)
        return 0, f"{result}\n" if result else ""
    (call.log if call else PodLog("info", "", 0)).error(protocol.message_of(failure))
    if call:
        call.report(protocol.code_of(failure), begin)
    return 1, protocol.error_text(failure, protocol.spoken(data))


def main() -> NoReturn:
    """The console script `istio-init-cni`."""
    from istio_init.kernel.host.process import environment, reserve_standard_descriptors

    reserve_standard_descriptors()
    if sys.argv[1:]:
        sys.exit(_about(sys.argv[1]))
    # Anything that is printed from here on must not mix with the result.
    result = os.dup(1)
    os.dup2(2, 1)
    code, text = answer(environment(), _input())
    try:
        data = text.encode()
        while data:
            data = data[os.write(result, data) :]
    except OSError:
        code = 1
    os._exit(code)  # noqa: SLF001 (that is its name; nothing needs tearing down)


ABOUT = """istio-init-cni {version}: the CNI plugin that captures the traffic of pods with a sidecar.

A container runtime calls it, with CNI_COMMAND and further variables in its environment and the network's configuration
on standard input. `istio-init cni install` adds it to a node's network; istio-init-cni(8) has its configuration.
It speaks versions {versions} of the CNI specification.
"""


def _about(flag: str) -> int:
    """Answer a person who calls the plugin with an argument; returns the exit code."""
    from istio_init import __version__
    from istio_init.errors import shown

    if flag in {"-h", "--help"}:
        sys.stdout.write(ABOUT.format(version=__version__, versions=", ".join(VERSIONS)))
    elif flag == "--version":
        sys.stdout.write(f"istio-init {__version__}\n")
    else:
        sys.stderr.write(f"istio-init-cni: {shown(flag)}: takes no arguments but --help and --version\n")
        return 255
    return 0


def _input() -> bytes:
    """Standard input to its end, or to where it is longer than any configuration."""
    data = b""
    try:
        while len(data) <= protocol.LONGEST_INPUT and (chunk := os.read(0, 1 << 20)):
            data += chunk
    except OSError:
        pass  # what is missing is no JSON
    return data
