"""`istio-init cni agent`: the node's process, which a DaemonSet runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.typer_parameters import HelpAll  # noqa: TC001 (Typer reads it)
from istio_init.cli.verbs.cni_flags import (
    BACKENDS,
    Backend,
    BinDir,
    Config,
    Interval,
    Json,
    NetDir,
    OnExit,
    Plugin,
    duration,
    ending,
    entry,
    program,
)
from istio_init.cli.verbs.output import choice
from istio_init.cni.node.directories import detect
from istio_init.cni.plugin.settings import AGENT_SOCKET, REQUIRED
from istio_init.errors import InitError, shown
from istio_init.errors_rare import OptionError
from istio_init.log import Log

if TYPE_CHECKING:
    from istio_init.cni.agent.credentials import ApiCredentials
    from istio_init.cni.agent.departure import DaemonSetName

# What is done about pods that the plugin missed.
OFF = "off"
MODES = (OFF, "report", "label", "mend", "delete")
CONTROL_PLANE = ("istio-system", "kube-node-lease", "kube-public", "kube-system")
# As the manifest sets it, from the pod's own spec.nodeName.
NODE_NAME = "NODE_NAME"
LONGEST_NAME = 253  # a Kubernetes name


def agent(  # noqa: PLR0913 (a command line's options)
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    plugin: Plugin = "",
    plugin_config: Config = "",
    capture_backend: Backend = "",
    interval: Interval = "10s",
    on_exit: OnExit = "uninstall",
    node: Annotated[str, typer.Option("--node", metavar="NAME", help=f"This node's name. Unset: ${NODE_NAME}.")] = "",
    kubeconfig: Annotated[
        str, typer.Option("--kubeconfig", metavar="FILE", help="How to reach the API. Unset: as a pod does.")
    ] = "",
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where metrics and probes are served; empty: nowhere.")
    ] = "127.0.0.1:15014",
    socket: Annotated[str, typer.Option(metavar="PATH", help="The unix socket for the plugin.")] = AGENT_SOCKET,
    repair: Annotated[
        str, typer.Option(metavar="|".join(MODES), help="What is done about pods that the plugin missed.")
    ] = OFF,
    repair_except: Annotated[
        str, typer.Option(metavar="NAMESPACES", help="Namespaces whose pods --repair delete leaves alone.")
    ] = ",".join(CONTROL_PLANE),
    repair_rate: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="Evictions a minute, at most.")] = 5,
    repair_interval: Annotated[
        str, typer.Option(metavar="DURATION", help="Inspect the pods at least this often.")
    ] = "5m",
    untaint: Annotated[
        str, typer.Option(metavar="KEY", help="Remove this taint from the node once the agent is ready.")
    ] = "",
    daemonset: Annotated[
        str,
        typer.Option(metavar="NAMESPACE/NAME", help="Apply --on-exit only if this DaemonSet is deleted."),
    ] = "",
    cri_socket: Annotated[
        str, typer.Option("--cri-socket", metavar="PATH", help="The container runtime's socket. Unset: detected.")
    ] = "",
    log_as_json: Json = False,
    _help_all: HelpAll = False,
) -> int:
    """Keep the plugin installed, and answer it for this node's pods, until a signal arrives."""
    log = Log("info", as_json=log_as_json)
    try:
        import asyncio  # which the image for pods leaves out

        from istio_init.cni.agent.agent import Agent, AgentSettings
        from istio_init.cni.agent.repair import RepairSettings
    except ImportError as error:
        needed = "pip install 'h11>=0.16' 'prometheus-client>=0.22'"
        raise InitError(f"cni agent needs further packages: {needed} ({error})") from error
    places = detect(cni_net_dir, cni_bin_dir)
    repairs = RepairSettings(
        choice("--repair", repair, MODES),
        tuple(filter(None, repair_except.split(","))),
        repair_rate,
        duration("--repair-interval", repair_interval),
    )
    settings = AgentSettings(
        _node(node, os.environ.get(NODE_NAME, "")),
        _credentials(kubeconfig),
        places,
        plugin or program(),
        plugin_config,
        lambda: {"agent": REQUIRED, "agent_socket": socket, **entry(plugin_config, capture_backend)},
        duration("--interval", interval),
        ending(on_exit),
        listen,
        socket,
        repairs,
        (f"--cni-net-dir={places.networks}", *([f"--cri-socket={cri_socket}"] if cri_socket else [])),
        untaint,
        _daemonset(daemonset),
        ebpf=choice("--capture-backend", capture_backend or BACKENDS[0], BACKENDS) == "ebpf",
    )

    async def run() -> None:
        await Agent(settings, log).run()

    try:
        asyncio.run(run())
    except* Exception as group:  # noqa: BLE001 (a user gets one line, whatever ended it)
        raise _first(group) from None
    return 0


def _first(group: BaseExceptionGroup[Exception]) -> InitError:
    """The error that ended the tasks; a user gets one line."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, InitError):
        return error
    return InitError(f"internal error: {type(error).__name__}: {shown(str(error), 300)[1:-1]}")


def _node(flag: str, environment: str) -> str:
    name = flag or environment
    if not name:
        raise OptionError("--node", name, f"empty; name this node, or set {NODE_NAME}")
    if not _is_name(name):
        raise OptionError("--node" if flag else NODE_NAME, name, "not a node's name")
    return name


def _daemonset(text: str) -> DaemonSetName | None:
    from istio_init.cni.agent.departure import DaemonSetName

    if not text:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(map(_is_name, parts)):
        raise OptionError("--daemonset", text, "use NAMESPACE/NAME")
    return DaemonSetName(*parts)


def _is_name(text: str) -> bool:
    """Whether it may be the name of an object in Kubernetes."""
    return 0 < len(text) <= LONGEST_NAME and all(each.isascii() and (each.isalnum() or each in "-.") for each in text)


def _credentials(kubeconfig: str) -> ApiCredentials:
    from istio_init.cni.agent.credentials import from_kubeconfig, in_cluster

    return from_kubeconfig(kubeconfig) if kubeconfig else in_cluster(os.environ)
