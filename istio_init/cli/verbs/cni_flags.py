"""Flags of the `cni` verbs for a node: the directory of its networks, and the plugin's entry in them."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated, Any

import typer

from istio_init.cli.verbs.output import choice
from istio_init.cni.node import conflist
from istio_init.errors import InitError, shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.kernel.host import files
from istio_init.model import parsers

# containerd and CRI-O pass the pod's annotations by this capability (CNI conventions, dynamic plugin specific fields).
ENTRY: dict[str, Any] = {"type": conflist.PLUGIN, "capabilities": {"io.kubernetes.cri.pod-annotations": True}}

# The plugin's bundle in the node image.
BUNDLE = "/usr/lib/istio-init/cni"
BACKENDS = ("iptables", "ebpf")
ON_EXIT = ("uninstall", "unchain", "keep")

NetDir = Annotated[
    str, typer.Option("--cni-net-dir", metavar="DIR", help="The directory of CNI networks. Unset: detected.")
]
Config = Annotated[str, typer.Option("--plugin-config", metavar="FILE", help="JSON: the entry in the network.")]

BinDir = Annotated[
    str, typer.Option("--cni-bin-dir", metavar="DIR", help="The directory of CNI plugins. Unset: detected.")
]
Plugin = Annotated[str, typer.Option("--plugin", metavar="PATH", help="The program, or the bundle, to install.")]
Interval = Annotated[str, typer.Option(metavar="DURATION", help="Check at least this often, until SIGTERM.")]
OnExit = Annotated[str, typer.Option(metavar="|".join(ON_EXIT), help="What SIGTERM does.")]
Backend = Annotated[
    str,
    typer.Option(
        "--capture-backend", metavar="|".join(BACKENDS), help="How the plugin captures pods. Unset: as the entry says."
    ),
]
Json = Annotated[bool, typer.Option("--log-as-json", metavar="", help="Log lines of JSON.")]


def entry(path: str, backend: str = "") -> dict[str, Any]:
    """The plugin's entry in the network: the file's fields over the defaults, and the capture backend if one is given.

    OptionError for an unknown backend.
    """
    fields = _entry(path)
    if not backend:
        return fields
    defaults = {**fields.get("defaults", {}), "capture-backend": choice("--capture-backend", backend, BACKENDS)}
    return {**fields, "defaults": defaults}


def _entry(path: str) -> dict[str, Any]:
    if not path:
        return ENTRY
    content = files.read(path)
    if content is None:
        raise OptionError("--plugin-config", path, "no such file")
    try:
        return {**ENTRY, **conflist.plugin_configuration(content.data.decode())}
    except ValueError as error:
        raise InitError(f"--plugin-config: {shown(path)}: {error}") from error


def program() -> str:
    """The default plugin: the image's bundle, else the program that was installed with this one."""
    if os.path.isdir(BUNDLE):
        return BUNDLE
    beside = os.path.join(os.path.dirname(sys.argv[0]), conflist.PLUGIN)
    path = beside if os.access(beside, os.X_OK) else shutil.which(conflist.PLUGIN)
    if not path:
        raise UsageError(f"--plugin: no {conflist.PLUGIN} next to this program or in PATH; give its path")
    return path


def ending(on_exit: str) -> str:
    """What SIGTERM does, as --on-exit says; OptionError for an unknown word."""
    return choice("--on-exit", on_exit or "uninstall", ON_EXIT)


def duration(flag: str, text: str) -> float:
    """The seconds of a duration such as 10s; OptionError for any other text."""
    try:
        return parsers.duration(text)
    except ValueError as error:
        raise OptionError(flag, text, str(error)) from None
