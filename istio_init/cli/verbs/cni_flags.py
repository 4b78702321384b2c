"""What verbs of the CNI plugin are told of a node: where its networks are, and what is entered there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from istio_init.cni.node import conflist
from istio_init.errors import InitError, shown
from istio_init.errors_rare import OptionError
from istio_init.kernel.host import files

# The containerd-and-CRI-O way to hand a plugin the pod's annotations (CNI conventions, dynamic plugin specific fields).
ENTRY: dict[str, Any] = {"type": conflist.PLUGIN, "capabilities": {"io.kubernetes.cri.pod-annotations": True}}

NetDir = Annotated[str, typer.Option("--cni-net-dir", metavar="DIR", help="Where the networks are. Unset: detected.")]
Config = Annotated[str, typer.Option("--plugin-config", metavar="FILE", help="JSON: the entry in the network.")]


def entry(path: str) -> dict[str, Any]:
    """Our entry in the network: the file's, with the standing defaults where it says nothing."""
    if not path:
        return ENTRY
    content = files.read(path)
    if content is None:
        raise OptionError("--plugin-config", path, "there is no such file")
    try:
        return {**ENTRY, **conflist.plugin_configuration(content.data.decode())}
    except ValueError as error:
        raise InitError(f"--plugin-config: {shown(path)}: {error}") from error
