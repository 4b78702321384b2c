"""`istio-init manifest`: the init container for these options, to paste into a pod."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from istio_init.cli.verbs.output import choice
from istio_init.errors_rare import UsageError
from istio_init.formats import yaml_json
from istio_init.options.manifest import IMAGE, container
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.planning.socket_capture import FROM_THE_NODE


def manifest(
    options: Options,
    *,
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="The image's name.")] = IMAGE,
    output: Annotated[str, typer.Option(metavar="yaml|json", help="The format.")] = "yaml",
) -> int:
    """Print the init container for these options; it goes first in a pod's spec."""
    if options.capture_backend == "ebpf":
        raise UsageError(FROM_THE_NODE)
    form = choice("--output", output, ("yaml", "json"))
    sys.stdout.write(yaml_json.dump({"initContainers": [container(options, image)]}, form))
    return 0
