"""Causes outside of the rules: the wrong namespace, pods that are not to be captured, rules that were never made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import APP, calls_in, calls_out, is_captured, sent

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Situation
    from istio_init.simulate.path import PacketPath

NAME_IT = "name the pod: istio-init diagnose NAMESPACE/POD, or --container ID, or --pid of one of its processes"
BYPASS = "no call of this pod passes through the sidecar"


def host_network(about: Situation) -> Cause | None:
    """A pod in the node's own network."""
    if not (about.host_network or (about.named_pod and about.node)):
        return None
    return Cause(
        "host-network",
        BYPASS,
        "hostNetwork: the pod is in the node's own network, which is never captured",
        about.node or ("the pod's specification has hostNetwork: true",),
        ("take hostNetwork: true out of the pod's spec, or leave the pod out of the mesh",),
    )


def node_namespace(about: Situation) -> Cause | None:
    """The node's namespace in the place of a pod's."""
    if not about.node:
        return None
    return Cause(
        "node-namespace",
        "this is not a pod's network namespace",
        "the node's own namespace was inspected instead of the pod's",
        about.node,
        (NAME_IT,),
    )


def mode_none(about: Situation) -> Cause | None:
    """Interception mode NONE."""
    if not about.mode_none:
        return None
    return Cause(
        "mode-none",
        BYPASS,
        "interception mode NONE: no rules are made, applications must call the sidecar themselves",
        (about.mode_none,),
        ("set sidecar.istio.io/interceptionMode (or interceptionMode in proxy.istio.io/config) to REDIRECT or TPROXY",),
        _uncaptured(about),
    )


def not_captured_by_choice(about: Situation) -> Cause | None:
    """What the manifest, the annotations or the CNI plugin say against capture."""
    if not about.refusal:
        return None
    return Cause(
        "not-to-be-captured",
        BYPASS,
        "the pod is not to be captured",
        (about.refusal,),
        ("change what the evidence names, and create the pod anew",),
        _uncaptured(about),
    )


def empty_namespace(about: Situation) -> Cause | None:
    """A namespace in which nothing runs: one that a pod has left behind."""
    if about.processes != 0 or about.listening is None or about.listening or about.bound or about.connections:
        return None
    return Cause(
        "empty-namespace",
        "no call of the pod is seen here",
        "no process and no socket is in this network namespace: it is not the pod's present one",
        (
            "/proc shows no process with this namespace",
            "a sandbox (pause container) that is started again has a new one; a path below /run/netns may be left over",
        ),
        ("name the pod instead: istio-init diagnose NAMESPACE/POD, or --container ID of its present container",),
    )


def never_ran(about: Situation) -> Cause | None:
    """No rules at all."""
    if about.backends or not about.live:
        return None
    if about.uninjected:
        return Cause(
            "not-injected",
            BYPASS,
            "the pod was not injected, so nothing makes rules in it",
            ("its manifest has neither istio-init nor istio-validation, and no annotation sidecar.istio.io/status",),
            (
                'label the namespace istio-injection=enabled, or the pod sidecar.istio.io/inject: "true"',
                "then create the pod anew: injection happens at its admission",
            ),
            _uncaptured(about),
        )
    evidence = ["no table of any backend (legacy, nft, native) has an Istio rule"]
    if about.proxies:
        evidence.append(f"the sidecar runs: {about.proxies[0].text}")
    elif not about.named_place:
        evidence.append("no pod was named, and no sidecar runs here: this is the command's own network namespace")
    if not about.inferred:
        evidence.append(f"wanted by {about.origin}")
    return Cause(
        "no-rules",
        BYPASS,
        "the init container (or the CNI plugin) never ran: there are no Istio rules",
        tuple(evidence),
        (
            *(() if about.proxies or about.named_place else (NAME_IT,)),
            "look at the init container: kubectl logs POD -c istio-init; or at the CNI plugin: istio-init cni repair",
            "create the pod anew, or apply the rules now: istio-init apply --netns PATH ...",
        ),
        _uncaptured(about),
    )


def _uncaptured(about: Situation) -> PacketPath | None:
    path = sent(about, about.families[0], APP)
    return None if is_captured(path) else path


def two_backends(about: Situation) -> Cause | None:
    """Istio rules in the tables of more than one backend."""
    if len(about.backends) < 2:
        return None
    names = " and ".join(about.backends)
    return Cause(
        "two-backends",
        "calls are captured by two sets of rules",
        f"the rules were made twice, in different backends: {names}",
        (
            "the tables have Istio rules, and the node's maps have the pod (eBPF): both capture its calls"
            if "ebpf" in about.backends
            else f"the {names} tables have Istio rules; the kernel asks all of them",
        ),
        ("istio-init clean --netns PATH, then one istio-init apply; or istio-init apply --reconcile",),
        calls_out(about, about.families[0]) or calls_in(about, about.families[0]),
    )


def other_backend(about: Situation) -> Cause | None:
    """Rules in another backend's tables than the options name."""
    options = about.options
    requested = "native" if options.native_nftables else options.force_iptables_binary
    requested = "ebpf" if options.capture_backend == "ebpf" else requested
    if about.inferred or not requested or len(about.backends) != 1 or about.backends[0] == requested:
        return None
    return Cause(
        "other-backend",
        "the rules are not where the options want them",
        f"the rules were made in another backend: in the {about.backends[0]} tables, not "
        + ("by eBPF" if requested == "ebpf" else f"in the {requested} ones"),
        (f"{about.origin} asks for {requested}",),
        (
            "istio-init clean --netns PATH, then the plugin's apply again"
            if requested == "ebpf"
            else f"istio-init apply --reconcile with the same options moves them to the {requested} tables",
        ),
    )
