"""`istio-init cni`: install the plugin on this node, keep it installed, and remove it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.help_page import Command, Group
from istio_init.cli.typer_parameters import HelpAll  # noqa: TC001 (Typer reads it)
from istio_init.cli.verbs.acting import RecordedLog
from istio_init.cli.verbs.cni_agent import agent
from istio_init.cli.verbs.cni_flags import (
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
from istio_init.cli.verbs.cni_repair import repair_pods
from istio_init.cli.verbs.output import choice, print_json
from istio_init.cni.node import conflist, ebpf_removal
from istio_init.cni.node import install as installation
from istio_init.cni.node.directories import detect
from istio_init.cni.node.ebpf_removal import Removal
from istio_init.cni.node.keep import Keeper, watched
from istio_init.errors import printable
from istio_init.errors_rare import OptionError, UsageError
from istio_init.kernel.host.inotify import Watch
from istio_init.log import Log

if TYPE_CHECKING:
    from istio_init.cni.node.directories import Directories

Output = Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")]

application = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip


@application.callback()
def node(*, _help_all: HelpAll = False) -> None:
    """The CNI plugin on this node."""


application.command(name="agent", cls=Command)(agent)
application.command(name="repair", cls=Command)(repair_pods)


@application.command(cls=Command)
def install(  # noqa: PLR0913 (a command line's options)
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    plugin: Plugin = "",
    plugin_config: Config = "",
    capture_backend: Backend = "",
    watch: Annotated[bool, typer.Option("--watch", metavar="", help="Keep it installed until SIGTERM.")] = False,
    interval: Interval = "10s",
    on_exit: OnExit = "",
    log_as_json: Json = False,
    output: Output = "text",
    _help_all: HelpAll = False,
) -> int:
    """Install the plugin's program, and add it to the network that pods get."""
    log = _log(output, log_as_json=log_as_json)
    if watch and isinstance(log, RecordedLog):
        raise UsageError("--output json: --watch does not end with a document; use --log-as-json")
    if on_exit and not watch:
        raise OptionError("--on-exit", on_exit, "only used with --watch; add --watch")
    at_end, pause = ending(on_exit), duration("--interval", interval)
    places, source = detect(cni_net_dir, cni_bin_dir), plugin or program()
    if not watch:
        actions = installation.install(places, source, entry(plugin_config, capture_backend))
        _warn_of_rivals(log, places)
        _log_actions(log, actions or ("in place, nothing written",))
        _report(log, "install", changed=bool(actions))
        return 0
    _keep_installed(log, places, source, (plugin_config, capture_backend), pause)
    log.info(f"terminating: {at_end}")
    if at_end != "keep":
        _log_actions(log, installation.uninstall(places, keep_program=at_end == "unchain"))
    return 0


@application.command(cls=Command)
def uninstall(  # noqa: PLR0913 (a command line's options)
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    keep_program: Annotated[
        bool, typer.Option("--keep-program", metavar="", help="Only remove it from the network.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Remove capture by eBPF although it captures pods.")
    ] = False,
    log_as_json: Json = False,
    output: Output = "text",
    _help_all: HelpAll = False,
) -> int:
    """Remove the plugin from every network of this node, its program, and capture by eBPF."""
    log = _log(output, log_as_json=log_as_json)
    places = detect(cni_net_dir, cni_bin_dir)
    actions = installation.uninstall(places, keep_program=keep_program)
    removal = Removal() if keep_program else ebpf_removal.remove(force=force)
    actions = (*actions, *(f"{each}: programs, maps and pins removed" for each in removal.removed))
    _log_actions(log, actions or ("the plugin is not installed; nothing to remove",))
    if removal.captured:
        log.warn(
            f"capture by eBPF stays on this node, since {removal.captured} of its pods are captured by it; without it "
            "their new connections would not go to the proxy: remove the pods and repeat this, or use --force"
        )
    _report(log, "uninstall", changed=bool(actions))
    return 1 if removal.captured else 0


def _log(output: str, *, log_as_json: bool) -> Log:
    """The log of a verb that acts: its lines are kept if they are to be one document."""
    if choice("--output", output, ("text", "json")) == "json":
        return RecordedLog("info")
    return Log("info", as_json=log_as_json)


def _report(log: Log, verb: str, *, changed: bool) -> None:
    if isinstance(log, RecordedLog):
        lines = [{"level": level, "message": message} for level, message in log.lines]
        print_json("cni-change", {"verb": verb, "changed": changed, "log": lines})


@application.command(cls=Command)
def status(
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    plugin_config: Config = "",
    capture_backend: Backend = "",
    output: Output = "text",
    _help_all: HelpAll = False,
) -> int:
    """Check whether the plugin is installed; exit 0 if it is, 1 if not."""
    form = choice("--output", output, ("text", "json"))
    places = detect(cni_net_dir, cni_bin_dir)
    installed = installation.status(places, entry(plugin_config, capture_backend) if plugin_config else None)
    if form == "json":
        document = {
            "whole": installed.whole,
            "program": installed.program,
            "network": installed.network,
            "entry": installed.entry,
        }
        print_json("cni-status", document)
    else:
        path = os.path.join(places.programs, conflist.PLUGIN)
        network = installed.network or f"none in {places.networks}"
        for line in (f"program  {installed.program}: {path}", f"entry    {installed.entry}: {network}"):
            sys.stdout.write(printable(line) + "\n")
    return 0 if installed.whole else 1


def _keep_installed(log: Log, places: Directories, source: str, config: tuple[str, str], pause: float) -> None:
    """Reinstall whenever the installation is incomplete, until a signal arrives.

    `config` is the file of the entry, and the capture backend.
    """
    with (
        Watch(watched(places, config[0])) as watch,
        Keeper(log, places, source, lambda: entry(*config)) as keeper,
    ):
        while not watch.termination_requested:
            keeper.attempt()
            watch.rest(keeper.rest)
            watch.wait(pause)


def _warn_of_rivals(log: Log, places: Directories) -> None:
    for line in installation.rivals(places.networks):
        log.warn(line)


def _log_actions(log: Log, actions: tuple[str, ...]) -> None:
    for line in actions:
        log.info(line)
