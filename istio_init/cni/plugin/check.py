"""CHECK and STATUS: compare a sandbox's rules with what ADD made, and tell whether this node can capture pods."""

from __future__ import annotations

from istio_init.cni.plugin.call import PluginCall, in_namespace
from istio_init.cni.plugin.protocol import (
    DRIFTED,
    UNAVAILABLE,
    PluginError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.options.table import Options


def check(call: PluginCall) -> str:
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


def _differences(options: Options, call: PluginCall) -> tuple[str, ...]:
    """How the namespace that the options name differs from what they ask for."""
    if options.capture_backend == "ebpf":
        from istio_init.inspect import socket_capture

        return socket_capture.inspect(options, call.log).findings
    from istio_init.inspect.state import findings, inspect

    return findings(inspect(options, call.log))


def status(call: PluginCall) -> str:
    """Whether an ADD would work on this node: the doctor's checks of capabilities, tables and extensions."""
    from istio_init.cni.plugin.readiness import troubles

    problems = troubles(call.settings)
    if problems:
        raise PluginError(UNAVAILABLE, f"pods can't be captured on this node: {problems[0]}", "; ".join(problems))
    return ""
