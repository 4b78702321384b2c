"""The fast way in: argv to Options with next to nothing imported, for every pod that waits.

What the fast parser (options/argv.py) does not take, help, completion and mistakes, goes to the Typer command.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import sys

from istio_init.kernel.host.process import environment, exit_on_signals, reserve_standard_descriptors
from istio_init.options.argv import options
from istio_init.runner.defaults import account
from istio_init.runner.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

PROGRAM = "istio-iptables"

INTERRUPTED = 130  # 128 + SIGINT, as a shell tells it


def main(argv: Sequence[str], environ: Mapping[str, str], program: str = PROGRAM) -> int:
    """Run `istio-iptables` with these arguments, called by whatever name; returns the exit code."""
    warnings: list[str] = []
    wanted = options(argv, environ, account, warnings)
    if wanted is not None:
        return run(wanted, environ, warnings)
    try:
        from istio_init.cli import typer_options

        return typer_options.main(argv, environ, program)
    except KeyboardInterrupt:
        return INTERRUPTED


def istio_iptables() -> NoReturn:
    """The console script `istio-iptables`."""
    exit_on_signals()
    reserve_standard_descriptors()
    _leave(main(sys.argv[1:], environment()))


def istio_clean_iptables() -> NoReturn:
    """The console script `istio-clean-iptables`: the same as `istio-iptables --cleanup-only`."""
    exit_on_signals()
    reserve_standard_descriptors()
    _leave(main(["--cleanup-only", *sys.argv[1:]], environment(), "istio-clean-iptables"))


def _leave(code: int) -> NoReturn:
    # Everything is written and nothing needs tearing down: an orderly interpreter shutdown takes 1 to 2 ms.
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)  # noqa: SLF001 (that is its name)
