"""`istio-init cni repair`: the pods that the plugin missed on this node, and their rules made after all."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.verbs.cni_flags import Config, NetDir, entry
from istio_init.cli.verbs.output import choice
from istio_init.cni.node import cri, install
from istio_init.cni.node.directories import detect_networks
from istio_init.cni.node.repair import DRIFTED, FIXABLE, UNCAPTURED, UNKNOWN, PodNetwork, repair
from istio_init.cni.plugin.sandbox_state import CAPTURED
from istio_init.errors import InitError, printable, shown
from istio_init.kernel.host.grpc import GrpcChannel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_init.cni.node.repair import Finding

# As `istio-init check` has them.
CODES = {CAPTURED: 0, DRIFTED: 3, UNCAPTURED: 4}
# How a state is shown in a table.
STYLES = {CAPTURED: "green", DRIFTED: "yellow", UNCAPTURED: "bold red", UNKNOWN: "bold red"}
# The network's name where --plugin-config tells of its entry, and nobody of the rest.
ANY_NETWORK = "istio-init"


def repair_pods(
    *,
    fix: Annotated[
        bool, typer.Option("--fix/--dry-run", metavar="", help="Capture what is to be captured, or only tell.")
    ] = False,
    cri_socket: Annotated[
        str, typer.Option("--cri-socket", metavar="PATH", help="The container runtime's. Unset: detected.")
    ] = "",
    cni_net_dir: NetDir = "",
    plugin_config: Config = "",
    output: Annotated[
        str, typer.Option(metavar="table|text|json", help="Unset: a table on a terminal, text elsewhere.")
    ] = "",
) -> int:
    """Find this node's pods that the plugin missed: exit 0 if none is left, 3 drifted, 4 uncaptured, 1 unknown."""
    form = choice("--output", output or ("table" if sys.stdout.isatty() else "text"), ("table", "text", "json"))
    network = network_of(cni_net_dir, plugin_config)
    with GrpcChannel(cri.endpoint(cri_socket, os.environ)) as channel:
        sandboxes = tuple(cri.sandboxes(channel))
    found = tuple(repair(sandboxes, network, fix=fix))
    code = exit_code(found)
    if form == "json":
        sys.stdout.write(json.dumps({"code": code, "pods": [document(each) for each in found]}, indent=2) + "\n")
    elif form == "text":
        sys.stdout.write("".join(f"{line}\n" for line in text(found)))
    else:
        _print(found)
    return code


def network_of(cni_net_dir: str, plugin_config: str) -> PodNetwork:
    """The network that the plugin is in, with the entry that it has there or the one that is given."""
    if plugin_config:
        standing = install.current_entry(cni_net_dir) if cni_net_dir else None
        return PodNetwork(standing[0] if standing else ANY_NETWORK, entry(plugin_config))
    networks = cni_net_dir or detect_networks()
    standing = install.current_entry(networks)
    if standing is None:
        raise InitError(
            f"{shown(networks, 256)}: the plugin is in no network here: istio-init cni install enters it; "
            "or tell with --plugin-config what it is set up to do"
        )
    return PodNetwork(*standing)


def exit_code(found: Iterable[Finding]) -> int:
    """0 where nothing is left to be done; 1 where that can't be told of each pod, else the worst that is left."""
    codes = [CODES.get(each.state, 1) for each in found if each.wrong]
    return 1 if 1 in codes else max(codes, default=0)


def document(found: Finding) -> dict[str, object]:
    """A pod as JSON has it."""
    pod = found.sandbox
    return {
        "namespace": pod.namespace,
        "pod": pod.name,
        "uid": pod.uid,
        "sandbox": pod.identity,
        "state": found.state,
        "fixed": found.fixed,
        "why": found.why,
        "differences": list(found.differences),
        "connections": found.connections,
    }


def text(found: Sequence[Finding]) -> list[str]:
    """A line for each pod, and one for all."""
    rows = [(_state(each), _name(each), _told(each)) for each in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"{state:{widths[0]}}  {name:{widths[1]}}  {why}" for state, name, why in rows]
    return [*lines, summary(found)]


def summary(found: Sequence[Finding]) -> str:
    """How many pods are in which state."""
    counts = Counter(map(_state, found))
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    left = sum(each.wrong and each.state in FIXABLE for each in found)
    return f"{len(found)} in all" + (f": {told}" if told else "") + (f"; --fix captures {left}" if left else "")


def _state(found: Finding) -> str:
    return f"{found.state}, fixed" if found.fixed else found.state


def _name(found: Finding) -> str:
    return printable(f"{found.sandbox.namespace}/{found.sandbox.name}")


def _told(found: Finding) -> str:
    """Why, what differs first, and what a fix ends."""
    parts = [found.why]
    if found.differences and found.state == DRIFTED and not found.fixed:
        more = f" and {len(found.differences) - 1} more" if found.differences[1:] else ""
        parts.append(found.differences[0] + more)
    if found.connections:
        parts.append(f"open connections that {'were' if found.fixed else 'would be'} cut: {found.connections}")
    return printable("; ".join(parts))


def _print(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    why = Column("Why", overflow="fold")
    table = Table("Pod", "State", why, caption=summary(found), caption_justify="left")
    for each in found:
        state = Text(_state(each), style="green" if each.fixed else STYLES.get(each.state, "dim"))
        table.add_row(Text(_name(each)), state, Text(_told(each)))
    Console().print(table)
