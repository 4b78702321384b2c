"""The fast start: from argv to Options with few imports, since every pod waits for it.

The Typer command handles what the fast parser (options/argv.py) does not: help, completion and mistakes.
"""

from __future__ import annotations

import posix as os  # the C half of os; importing the other half takes a millisecond
import sys

from istio_init import log
from istio_init.errors import InitError, out_of_resources, printable
from istio_init.kernel.host.process import environment, exit_on_signals, reserve_standard_descriptors
from istio_init.options.argv import options
from istio_init.runner.defaults import account
from istio_init.runner.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

PROGRAM = "istio-iptables"

INTERRUPTED = 130  # 128 + SIGINT, as in a shell
# What Python raises where memory, open files or readable modules are lacking.
STARVED = (ImportError, MemoryError, OSError, SystemError)


def main(argv: Sequence[str], environ: Mapping[str, str], program: str = PROGRAM) -> int:
    """Run `istio-iptables` with these arguments; returns the exit code. `program` is the name for messages."""
    warnings: list[str] = []
    parsed = options(argv, environ, account, warnings)
    if parsed is not None:
        return run(parsed, environ, warnings)
    try:
        from istio_init.cli import typer_options

        return typer_options.main(argv, environ, program)
    except KeyboardInterrupt:
        return INTERRUPTED
    except STARVED as error:
        return starved(program, error)


def starved(program: str, error: BaseException) -> int:
    """Print in one line why a program cannot even be loaded; returns the exit code."""
    message = printable(f"{program}: {out_of_resources(error)}")
    log.write_termination_message(message)
    if sys.stderr:
        sys.stderr.write(f"{message}\n")
    return InitError.exit_code


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
    # Everything is written and nothing needs cleanup; an orderly interpreter shutdown would take 1 to 2 ms.
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)  # noqa: SLF001 (that is its name)
