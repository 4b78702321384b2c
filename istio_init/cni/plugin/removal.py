"""DEL and GC: remove the rules and the state of sandboxes that have ended."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import time

from istio_init.cni.plugin import protocol, sandbox_state
from istio_init.cni.plugin.call import PluginCall, apply_options, in_namespace
from istio_init.cni.plugin.protocol import (
    CONFIGURATION,
    PluginError,
    Request,
)
from istio_init.errors import InitError
from istio_init.options.table import Options
from istio_init.runner import access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.cni.plugin.sandbox_state import SandboxState


ATTACHMENTS = "cni.dev/valid-attachments"


def delete(call: PluginCall) -> str:
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


def _clean(call: PluginCall, state: SandboxState | None, netns: str) -> None:
    """Remove Istio's rules from a namespace, if it still exists under this path."""
    number = access.namespace_number(netns)
    if not number or access.is_own_namespace(netns) or (state and state.inode and state.inode != number):
        call.log.info("the sandbox's namespace is gone")
        if state and state.options and state.options.capture_backend == "ebpf":
            from istio_init.runner import socket_capture

            socket_capture.collect()
        return
    try:
        apply_options(_cleanup(state, netns), call, time.monotonic())
    except InitError as error:
        # An error would keep the runtime from removing the pod, and the rules go with the namespace.
        call.log.warn(f"not cleaned up: {protocol.message_of(error)}")


def _cleanup(state: SandboxState | None, netns: str) -> Options:
    """The options of a run that removes the rules of a recorded state."""
    options = state.options if state and state.options else Options(cni_mode=True)
    return in_namespace(options, netns).replace(cleanup_only=True)


def collect(call: PluginCall) -> str:
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


def _clean_in_child(call: PluginCall, state: SandboxState) -> None:
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
