"""Options from a command line, with this machine's users and groups, as the program itself takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.input_file import read
from istio_init.options import argv
from istio_init.options.from_pod import FLAG, from_pod
from istio_init.runner.defaults import account

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_init.options.table import Lookup, Options


def options(words: Sequence[str], environ: Mapping[str, str]) -> Options | None:
    """The Options that `istio-iptables` would run with, or None where it would leave the command line to Typer."""
    return argv.options(words, environ, account)


def from_pod_file(path: str, arguments: Mapping[str, str], lookup: Lookup) -> Options:
    """The Options of `--from-pod PATH`."""
    return from_pod(read(FLAG, path), path, arguments, lookup)
