"""`istio-init cni repair`: finds the pods that the plugin missed on this node, and applies their rules."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli import terminal
from istio_init.cli.typer_parameters import HelpAll  # noqa: TC001 (Typer reads it)
from istio_init.cli.verbs.cni_flags import Config, NetDir, entry
from istio_init.cli.verbs.output import choice, print_json
from istio_init.cni.node import cri, install
from istio_init.cni.node.directories import detect_networks
from istio_init.cni.node.repair import DRIFTED, FIXABLE, UNCAPTURED, UNKNOWN, Finding, PodNetwork, repair
from istio_init.cni.plugin.agent_client import VERSION, AgentClient
from istio_init.cni.plugin.sandbox_state import CAPTURED
from istio_init.cni.plugin.settings import NONE
from istio_init.errors import InitError, printable, shown
from istio_init.kernel.host.grpc import GrpcChannel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# The same exit codes as `istio-init check`.
CODES = {CAPTURED: 0, DRIFTED: 3, UNCAPTURED: 4}
# The colour of a state in a table.
STYLES = {CAPTURED: "green", DRIFTED: "yellow", UNCAPTURED: "bold red", UNKNOWN: "bold red"}
# The network's name if --plugin-config gives its entry, and nothing gives the name.
ANY_NETWORK = "istio-init"
# Seconds that the node agent may take for all pods.
AGENT_PATIENCE = 110.0


def repair_pods(  # noqa: PLR0913 (a command line's options)
    *,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix/--dry-run", metavar="", help="Capture the pods that should be captured, or only report them."
        ),
    ] = False,
    cri_socket: Annotated[
        str, typer.Option("--cri-socket", metavar="PATH", help="The container runtime's socket. Unset: detected.")
    ] = "",
    cni_net_dir: NetDir = "",
    plugin_config: Config = "",
    direct: Annotated[
        bool, typer.Option("--direct", metavar="", help="Inspect the pods here, even if a node agent could do it.")
    ] = False,
    output: Annotated[
        str, typer.Option(metavar="table|text|json", help="Unset: a table on a terminal, text elsewhere.")
    ] = "",
    _help_all: HelpAll = False,
) -> int:
    """Find this node's pods that the plugin missed: exit 0 if none is left, 3 drifted, 4 uncaptured, 1 unknown."""
    form = choice("--output", output or ("table" if sys.stdout.isatty() else "text"), ("table", "text", "json"))
    network = network_of(cni_net_dir, plugin_config)
    answered = None if direct or cri_socket or plugin_config else from_agent(network, fix=fix)
    findings = local_findings(network, cri_socket, fix=fix) if answered is None else answered
    code = exit_code(findings)
    if form == "json":
        print_json("cni-repair", {"code": code, "pods": [document(each) for each in findings]})
    elif form == "text":
        sys.stdout.write("".join(f"{line}\n" for line in text(findings)))
    else:
        _print(findings)
    return code


def local_findings(network: PodNetwork, cri_socket: str, *, fix: bool) -> tuple[Finding, ...]:
    """What this process finds, with the pods that the container runtime lists."""
    with GrpcChannel(cri.endpoint(cri_socket, os.environ)) as channel:
        sandboxes = tuple(cri.sandboxes(channel))
    return tuple(repair(sandboxes, network, fix=fix))


def from_agent(network: PodNetwork, *, fix: bool) -> tuple[Finding, ...] | None:
    """What the node agent finds, if one runs that is set up to repair pods; else None."""
    path = network.entry.get("agent_socket")
    if network.entry.get("agent", NONE) == NONE or not isinstance(path, str):
        return None
    client = AgentClient(path)
    try:
        answer = client.call({"version": VERSION, "ask": "repair", "fix": fix}, AGENT_PATIENCE)
    except InitError:
        return None  # none runs
    finally:
        client.close()
    if "error" in answer:
        if answer.get("final") is True:
            return None
        raise InitError(f"the node agent: {answer['error']}")
    return tuple(finding_of(each) for each in answer["report"]["pods"])


def finding_of(pod: Mapping[str, Any]) -> Finding:
    """The finding that `document` made a JSON object of."""
    sandbox = cri.Sandbox(str(pod["sandbox"]), str(pod["pod"]), str(pod["namespace"]), str(pod["uid"]))
    return Finding(
        sandbox, str(pod["state"]), str(pod["why"]), tuple(map(str, pod["differences"])), int(pod["connections"]),
        fixed=pod["fixed"] is True,
    )  # fmt: skip


def network_of(cni_net_dir: str, plugin_config: str) -> PodNetwork:
    """The network that the plugin is in, with its entry there or the one in --plugin-config."""
    if plugin_config:
        current = install.current_entry(cni_net_dir) if cni_net_dir else None
        return PodNetwork(current[0] if current else ANY_NETWORK, entry(plugin_config))
    networks = cni_net_dir or detect_networks()
    current = install.current_entry(networks)
    if current is None:
        raise InitError(
            f"{shown(networks, 256)}: no network here has the plugin; add it with istio-init cni install, "
            "or give its configuration with --plugin-config"
        )
    return PodNetwork(*current)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if no pod needs a fix, 1 if the state of any pod is unknown, else the highest code among the pods."""
    codes = [CODES.get(each.state, 1) for each in findings if each.wrong]
    return 1 if 1 in codes else max(codes, default=0)


def document(finding: Finding) -> dict[str, object]:
    """The JSON object of a pod."""
    pod = finding.sandbox
    return {
        "namespace": pod.namespace,
        "pod": pod.name,
        "uid": pod.uid,
        "sandbox": pod.identity,
        "state": finding.state,
        "fixed": finding.fixed,
        "why": finding.why,
        "differences": list(finding.differences),
        "connections": finding.connections,
    }


def text(findings: Sequence[Finding]) -> list[str]:
    """One line for each pod, and a summary."""
    rows = [(_state(each), _name(each), _detail(each)) for each in findings]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"{state:{widths[0]}}  {name:{widths[1]}}  {why}" for state, name, why in rows]
    return [*lines, summary(findings)]


def summary(findings: Sequence[Finding]) -> str:
    """The number of pods in each state."""
    counts = Counter(map(_state, findings))
    by_state = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    fixable = sum(each.wrong and each.state in FIXABLE for each in findings)
    return (
        f"{len(findings)} pods"
        + (f": {by_state}" if by_state else "")
        + (f"; --fix captures {fixable}" if fixable else "")
    )


def _state(finding: Finding) -> str:
    return f"{finding.state}, fixed" if finding.fixed else finding.state


def _name(finding: Finding) -> str:
    return printable(f"{finding.sandbox.namespace}/{finding.sandbox.name}")


def _detail(finding: Finding) -> str:
    """The reason, the first difference, and how many connections a fix cuts."""
    parts = [finding.why]
    if finding.differences and finding.state == DRIFTED and not finding.fixed:
        more = f" and {len(finding.differences) - 1} more" if finding.differences[1:] else ""
        parts.append(finding.differences[0] + more)
    if finding.connections:
        parts.append(f"open connections that {'were' if finding.fixed else 'would be'} cut: {finding.connections}")
    return printable("; ".join(parts))


def _print(findings: Sequence[Finding]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    why = Column("Why", overflow="fold")
    table = Table("Pod", "State", why, caption=summary(findings), caption_justify="left")
    for each in findings:
        state = Text(_state(each), style="green" if each.fixed else STYLES.get(each.state, "dim"))
        table.add_row(Text(_name(each)), state, Text(_detail(each)))
    terminal.show(lambda console: console.print(table))
