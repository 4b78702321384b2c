"""Causes in capture by eBPF: programs that are not attached, and pods that the node's maps do not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import calls_in, calls_out

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Situation

AGAIN = "run the plugin's apply again: istio-iptables --capture-backend ebpf --netns PATH ..., or create the pod anew"
HOOKS = {
    "connect": "outbound calls go out directly",
    "getsockopt": "the sidecar does not learn where a call was to go",
    "getpeername": "the app sees the sidecar's address as the other end",
    "sockops": "new listeners of the sidecar are not known, and captured calls lose their destination",
    "sendmsg": "DNS queries go out directly",
    "recvmsg": "DNS answers seem to come from the agent",
}
MOST_SHOWN = 3


def not_configured(about: Situation) -> Cause | None:
    """A pod that is to be captured by eBPF, and that the node does not know."""
    state = about.capture
    if about.options.capture_backend != "ebpf" or (state is not None and state.captured):
        return None
    if state is None:
        why = "the node's maps have nothing of this pod, or capture by eBPF is not installed on the node"
    else:
        why = "sk_lookup is attached to the pod's namespace, and the map of captured pods has no entry for it"
    return Cause(
        "capture-not-configured",
        "no call of this pod passes through the sidecar",
        "the pod is not in the node's map of captured pods (eBPF): the CNI plugin never ran for it, or was undone",
        (why, f"--capture-backend ebpf is asked for by {about.origin}"),
        (AGAIN, "look at the node: istio-init cni status; kubectl logs of the agent on this node"),
    )


def program_missing(about: Situation) -> Cause | None:
    """A program that was detached from the node's cgroup, or whose pin is gone."""
    state = about.capture
    if state is None or not state.missing:
        return None
    effects = [text for word, text in HOOKS.items() if any(word in each for each in state.missing)]
    return Cause(
        "capture-detached",
        effects[0] if effects else "calls are not treated as the options want",
        f"a program of the capture by eBPF is not attached at the node's cgroup: {', '.join(state.missing)}",
        tuple(f"{each}: not attached, or its pin is gone" for each in state.missing[:MOST_SHOWN]),
        (
            "every pod of the node is concerned: restart its agent (DaemonSet istio-init-cni), which attaches them",
            "or: " + AGAIN,
        ),
    )


def inbound_detached(about: Situation) -> Cause | None:
    """A pod without its own program for inbound calls."""
    state = about.capture
    if state is None or state.inbound_attached or not about.options.istio_inbound_ports:
        return None
    return Cause(
        "capture-inbound",
        "inbound calls bypass the sidecar",
        "the program for inbound calls (sk_lookup) is not attached to the pod's network namespace",
        ("the pod has an entry, and no pin below /sys/fs/bpf/istio-init/v1/pods",),
        (AGAIN,),
        calls_in(about, about.families[0]),
    )


def other_options(about: Situation) -> Cause | None:
    """An entry with other options than those that were wanted."""
    state = about.capture
    if state is None or not state.differences:
        return None
    return Cause(
        "capture-differs",
        "calls are not treated as the options want",
        f"the pod's entry in the node's maps differs from {about.origin}",
        state.differences[:MOST_SHOWN],
        (AGAIN,),
        calls_out(about, about.families[0]),
    )
