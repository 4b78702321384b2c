"""The subject of a verb where a pod is captured by eBPF: the rules in whose place the programs decide.

The programs ask of a socket what the rules ask of a packet, in the same order (image/bpf/capture.bpf.c), so explain,
prove and draw show the plan's rules: for the options of the command line, or for what the node's maps hold of a pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.given_options import given_options
from istio_init.errors import InitError
from istio_init.inspect.diagnose import collect_sockets
from istio_init.kernel.ebpf.user_ids import translated
from istio_init.planning.plan import build
from istio_init.planning.socket_capture import FLAG, refusals
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from istio_init.log import Log
    from istio_init.model.rules import Ruleset
    from istio_init.options.table import Options

NOTE = "captured by eBPF: no rules exist; programs at the node's cgroup decide as the rules that are shown"


def require_supported(options: Options) -> None:
    """InitError, naming the flag, for the first option that capture by eBPF does not support."""
    for refusal in refusals(options.replace(dry_run=True)):
        raise InitError(refusal)


def captured(options: Options, log: Log) -> tuple[Options, tuple[Ruleset, ...]]:
    """The options, or the pod's if none were given that shape rules; and the rules for what the node's maps hold of it.

    InitError if the pod that the options name is not captured by eBPF.
    """
    state = collect_sockets.state(options.network_namespace)
    if state is None or state.options is None:
        raise InitError(
            f"{FLAG}: {options.network_namespace or 'the namespace'}: not captured by eBPF on this node; "
            "see what is missing: istio-init check"
        )
    for each in state.missing:
        log.warn(f"the program {each} is not attached at the node's cgroup: what it decides is not captured")
    if not state.inbound_attached:
        log.warn("sk_lookup is not attached to the pod's network namespace: inbound connections are not captured")
    kept = {name: getattr(options, name) for name in ("network_namespace", "istio_inbound_tproxy_route_table")}
    installed = _own_ids(options, log, state.options).replace(**kept)
    chosen = options if given_options.get() - {"capture_backend"} else installed
    return chosen, build(installed).rulesets


def _own_ids(options: Options, log: Log, installed: Options) -> Options:
    """The installed options with the ids as the pod's user namespace counts them, as far as these options name them."""
    own = socket_capture.request(options, log).capture
    node = translated(options.network_namespace, own)
    users, groups = dict(zip(node.uids, own.uids, strict=True)), dict(zip(node.gids, own.gids, strict=True))
    uids = tuple(users.get(each, each) for each in installed.proxy_uid)
    gids = tuple(groups.get(each, each) for each in installed.proxy_groups)
    return installed.replace(proxy_uid=uids, proxy_gid=gids)
