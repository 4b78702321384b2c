"""ADD: decide, leave the state, and program the sandbox's namespace."""

from __future__ import annotations

import time

from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.call import PluginCall, apply_options, in_namespace
from istio_init.cni.plugin.fast_json import decode, encode
from istio_init.cni.plugin.protocol import (
    NAMESPACE,
    POD,
    UID,
)
from istio_init.cni.plugin.sandbox_state import SandboxState
from istio_init.log import now
from istio_init.runner import access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.cni.plugin.decision import Decision
    from istio_init.options.table import Options


def add(call: PluginCall) -> str:
    """Program the sandbox's namespace as its pod asks for; returns prevResult as it came."""
    begin, request = time.monotonic(), call.request
    decision = call.decide()
    if decision.options is not None:
        decision = decision.replace(options=_with_coming_ipv6(call, decision.options))
    # Before the rules, so that DEL knows what to clean up even if this process is killed.
    sandbox_state.write(_new_state(call, decision), call.settings.run_dir)
    if decision.options is not None:
        apply_options(in_namespace(decision.options, request.netns).replace(reconcile=True), call, begin)
    else:
        call.log.info("passed through, untouched")
    return request.previous or encode({"cniVersion": request.version, "dns": {}})


def _with_coming_ipv6(call: PluginCall, options: Options) -> Options:
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


def _new_state(call: PluginCall, decision: Decision) -> SandboxState:
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
