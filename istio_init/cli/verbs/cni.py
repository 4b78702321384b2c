"""`istio-init cni`: install the plugin on this node, keep it there, and remove it again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.help_page import Command, Group
from istio_init.cli.verbs.cni_flags import Config, NetDir, entry
from istio_init.cli.verbs.cni_repair import repair_pods
from istio_init.cli.verbs.output import choice
from istio_init.cni.node import conflist
from istio_init.cni.node import install as installation
from istio_init.cni.node.directories import detect
from istio_init.errors import InitError, printable
from istio_init.errors_rare import OptionError, UsageError
from istio_init.kernel.host.inotify import Watch
from istio_init.log import Log
from istio_init.model import parsers

if TYPE_CHECKING:
    from istio_init.cni.node.directories import Directories

# Where the image for nodes has the plugin's bundle.
BUNDLE = "/usr/lib/istio-init/cni"
ON_EXIT = ("uninstall", "unchain", "keep")

BinDir = Annotated[str, typer.Option("--cni-bin-dir", metavar="DIR", help="Where the plugins are. Unset: detected.")]
Plugin = Annotated[str, typer.Option("--plugin", metavar="PATH", help="The program, or the bundle, to install.")]
Json = Annotated[bool, typer.Option("--log-as-json", metavar="", help="Log lines of JSON.")]
Output = Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")]

application = typer.Typer(
    help="The CNI plugin on this node.", cls=Group, no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip
application.command(name="repair", cls=Command)(repair_pods)


@application.command(cls=Command)
def install(  # noqa: PLR0913 (a command line's options)
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    plugin: Plugin = "",
    plugin_config: Config = "",
    watch: Annotated[bool, typer.Option("--watch", metavar="", help="Keep it there until SIGTERM comes.")] = False,
    interval: Annotated[str, typer.Option(metavar="DURATION", help="With --watch: look at least so often.")] = "10s",
    on_exit: Annotated[str, typer.Option(metavar="|".join(ON_EXIT), help="With --watch: what SIGTERM does.")] = "",
    log_as_json: Json = False,
) -> int:
    """Install the plugin's program, and add it to the network that pods get."""
    log = Log("info", as_json=log_as_json)
    if on_exit and not watch:
        raise OptionError("--on-exit", on_exit, "only --watch stays until a signal comes; add it")
    ending = choice("--on-exit", on_exit or "uninstall", ON_EXIT)
    pause = _duration("--interval", interval)
    places, source = detect(cni_net_dir, cni_bin_dir), plugin or _program()
    if not watch:
        done = installation.install(places, source, entry(plugin_config))
        _warn(log, places)
        _tell(log, done or ("in place, nothing written",))
        return 0
    _keep(log, places, source, plugin_config, pause)
    log.info(f"asked to end: {ending}")
    if ending != "keep":
        _tell(log, installation.uninstall(places, keep_program=ending == "unchain"))
    return 0


@application.command(cls=Command)
def uninstall(
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    keep_program: Annotated[
        bool, typer.Option("--keep-program", metavar="", help="Only remove it from the network.")
    ] = False,
    log_as_json: Json = False,
) -> int:
    """Remove the plugin from every network of this node, and its program."""
    places = detect(cni_net_dir, cni_bin_dir)
    done = installation.uninstall(places, keep_program=keep_program)
    _tell(Log("info", as_json=log_as_json), done or ("no Istio rules found, nothing to take away",))
    return 0


@application.command(cls=Command)
def status(
    *,
    cni_net_dir: NetDir = "",
    cni_bin_dir: BinDir = "",
    plugin_config: Config = "",
    output: Output = "text",
) -> int:
    """Say whether the plugin is in place; exit 0 if it is, 1 if not."""
    form = choice("--output", output, ("text", "json"))
    places = detect(cni_net_dir, cni_bin_dir)
    found = installation.status(places, entry(plugin_config) if plugin_config else None)
    if form == "json":
        told = {"whole": found.whole, "program": found.program, "network": found.network, "entry": found.entry}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        program = os.path.join(places.programs, conflist.PLUGIN)
        network = found.network or f"none in {places.networks}"
        for line in (f"program  {found.program}: {program}", f"entry    {found.entry}: {network}"):
            sys.stdout.write(printable(line) + "\n")
    return 0 if found.whole else 1


def _keep(log: Log, places: Directories, source: str, plugin_config: str, pause: float) -> None:
    """Install whenever something is not as it should be, until a signal comes."""
    said = ""
    watched = [places.networks, places.programs, *([os.path.dirname(plugin_config)] if plugin_config else [])]
    with Watch(watched) as watch, installation.claim(places) as claim:
        while not watch.asked_to_end:
            try:
                done = installation.install(places, source, entry(plugin_config))
                if done:
                    _warn(log, places)
                _tell(log, done)
                claim.renew()
                said = ""
            except InitError as error:
                # Somebody may be in the middle of writing the network; what stays wrong is said once.
                if str(error) != said:
                    said = str(error)
                    log.warn(f"not in place, and tried again: {said}")
            watch.wait(pause)


def _warn(log: Log, places: Directories) -> None:
    for line in installation.rivals(places.networks):
        log.warn(line)


def _tell(log: Log, done: tuple[str, ...]) -> None:
    for line in done:
        log.info(line)


def _program() -> str:
    """The plugin where nobody names one: the image's bundle, else the program that was installed with this one."""
    if os.path.isdir(BUNDLE):
        return BUNDLE
    beside = os.path.join(os.path.dirname(sys.argv[0]), conflist.PLUGIN)
    found = beside if os.access(beside, os.X_OK) else shutil.which(conflist.PLUGIN)
    if not found:
        raise UsageError(f"--plugin: there is no {conflist.PLUGIN} beside this program: name one")
    return found


def _duration(flag: str, text: str) -> float:
    try:
        return parsers.duration(text)
    except ValueError as error:
        raise OptionError(flag, text, str(error)) from None
