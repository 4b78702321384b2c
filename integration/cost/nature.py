"""What each kind of capture is made of: conntrack entries, rules, passes of the pod's network stack, who can undo it.

These are three complaints about iptables ("Sidecar injection, transparent traffic hijacking and routing in Istio",
Jimmy Song, 2022), each as a number or as an experiment with a real Envoy.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from integration.containers.serving import get, talk

if TYPE_CHECKING:
    from integration.cost.pods import Fast

CONNECTIONS = 20
HEAD = "| | no capture |"
# The pods that are compared, each by the title of its column.
COLUMNS = {
    "none": "no capture",
    "redirect": "REDIRECT",
    "tproxy": "TPROXY",
    "native": "native nftables",
    "ebpf": "eBPF",
    "ebpf-tproxy": "eBPF, -m TPROXY",
}
# What a process with NET_ADMIN in the pod can do there, as a container that Istio's injection gave it can.
UNPRIVILEGED = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+net_admin,+net_raw")
UNDOING = (
    *(f"{program}-legacy -t {table} -F" for program in ("iptables", "ip6tables") for table in ("nat", "mangle", "raw")),
    "nft flush ruleset",
)


class Nature(NamedTuple):
    """Of one pod: `entries` and `packets` are per plain TCP connection, first inbound and then outbound.

    `undone` is whether the app's connections went past the proxy once a process with NET_ADMIN in the pod had flushed
    everything there.
    """

    rules: int
    entries: tuple[float, float]
    packets: tuple[float, float]
    undone: bool


def nature_of(mesh: Fast) -> Nature:
    """What a pod's capture is made of. The pod is not captured by rules any more afterwards."""
    rules = _rules(mesh)
    entries, packets = zip(*(_per_connection(mesh, inbound=inbound) for inbound in (True, False)), strict=True)
    return Nature(rules, entries, packets, _undone(mesh))


def _rules(mesh: Fast) -> int:
    """How many rules the pod's network namespace has."""
    run = mesh.pod.namespace.run
    legacy = [line for program in ("iptables", "ip6tables") for line in run(f"{program}-legacy-save").splitlines()]
    native = json.loads(run("nft", "--json", "list", "ruleset"))["nftables"]
    return sum(line.startswith("-A ") for line in legacy) + sum("rule" in each for each in native)


def _per_connection(mesh: Fast, *, inbound: bool) -> tuple[float, float]:
    """The conntrack entries, and the IP packets that the pod received and sent, per connection that is no HTTP."""
    mesh.pod.namespace.run("conntrack", "--flush")
    before = _packets(mesh)
    for _ in range(CONNECTIONS):
        talk(mesh.outside() if inbound else mesh.inside(), mesh.to_app if inbound else mesh.to_upstream)
    entries = int(mesh.pod.namespace.run("conntrack", "--count"))
    return entries / CONNECTIONS, (_packets(mesh) - before) / CONNECTIONS


def _packets(mesh: Fast) -> int:
    """InReceives and OutRequests of IP in the pod's namespace (/proc/net/snmp)."""
    names, values = (
        line.split() for line in mesh.pod.namespace.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Ip: ")
    )
    counted = dict(zip(names, values, strict=True))
    return int(counted["InReceives"]) + int(counted["OutRequests"])


def _undone(mesh: Fast) -> bool:
    """Whether a process in the pod with NET_ADMIN and NET_RAW can take the capture away."""
    for command in UNDOING:
        # Where there is no such table, there is nothing to flush.
        mesh.pod.namespace.completed(*UNPRIVILEGED, *command.split())
    with mesh.envoy.watched() as moved:
        assert get(mesh.inside(), mesh.to_upstream) == "responder_ipv4"
    return mesh.outbound not in moved


def table(natures: dict[str, Nature], costs: dict[str, list[str]]) -> str:
    """In Markdown, with a column for each kind of capture; `costs` are further rows."""
    chosen = {name: natures[name] for name in COLUMNS}
    rows: dict[str, list[str]] = {
        "Istio rules in the pod, both families": [str(each.rules) for each in chosen.values()],
        "conntrack entries of a connection, inbound / outbound": [_pair(each.entries) for each in chosen.values()],
        "IP packets that the pod's stack handles for it": [_pair(each.packets) for each in chosen.values()],
        "undone by NET_ADMIN in the pod": [
            "-" if name == "none" else "yes" if each.undone else "no" for name, each in chosen.items()
        ],
        **costs,
    }
    lines = [f"| | {' | '.join(COLUMNS.values())} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items())])


def _pair(values: tuple[float, float]) -> str:
    return " / ".join(f"{each:.1f}" for each in values)
