"""Flags of the `cni` verbs for a node: the directory of its networks, and the plugin's entry in them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from istio_init.cni.node import conflist
from istio_init.errors import InitError, shown
from istio_init.errors_rare import OptionError
from istio_init.kernel.host import files

# containerd and CRI-O pass the pod's annotations by this capability (CNI conventions, dynamic plugin specific fields).
ENTRY: dict[str, Any] = {"type": conflist.PLUGIN, "capabilities": {"io.kubernetes.cri.pod-annotations": True}}

NetDir = Annotated[
    str, typer.Option("--cni-net-dir", metavar="DIR", help="The directory of CNI networks. Unset: detected.")
]
Config = Annotated[str, typer.Option("--plugin-config", metavar="FILE", help="JSON: the entry in the network.")]


def entry(path: str) -> dict[str, Any]:
    """The plugin's entry in the network: the file's fields over the defaults."""
    if not path:
        return ENTRY
    content = files.read(path)
    if content is None:
        raise OptionError("--plugin-config", path, "no such file")
    try:
        return {**ENTRY, **conflist.plugin_configuration(content.data.decode())}
    except ValueError as error:
        raise InitError(f"--plugin-config: {shown(path)}: {error}") from error
