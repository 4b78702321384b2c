"""The image's entry point: finds the program and its arguments, and writes a failure to the termination log.

Istio's injection calls its own image as `pilot-agent istio-iptables -p 15001 ...`; with only the image swapped,
the arguments still begin with `istio-iptables`.
"""

from __future__ import annotations

import sys

from istio_init import log
from istio_init.cli import start
from istio_init.errors import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

PROGRAMS = ("istio-iptables", "istio-clean-iptables", "istio-init")

# Kubernetes' default terminationMessagePath.
TERMINATION_LOG = "/dev/termination-log"


def command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The program that a command line names, and its arguments.

    It is the last program name before the first argument; without one, the name that the process was called by.
    """
    program = argv[0].rpartition("/")[2]
    for position, token in enumerate(argv[1:], 1):
        if token not in {*PROGRAMS, "pilot-agent"}:
            return program, list(argv[position:])
        program = token
    return program, []


def main() -> NoReturn:
    """The entry point of the image."""
    log.termination_log = TERMINATION_LOG
    program, arguments = command(sys.argv)
    try:
        _become(program, arguments)
    except start.STARVED as error:
        sys.exit(start.starved(program, error))
    except Exception as error:
        log.write_termination_message(f"{program}: internal error: {type(error).__name__}: {error}")
        raise


def _become(program: str, arguments: list[str]) -> NoReturn:
    sys.argv = [program, *arguments]
    match program:
        case "istio-clean-iptables":
            start.istio_clean_iptables()
        case "istio-init":
            from istio_init.cli import console

            console.istio_init()
        case "pilot-agent":
            from istio_init.errors_rare import UsageError

            name = shown(arguments[0]) if arguments else "no subcommand"
            message = f"{program}: {name}: this image has only {', '.join(PROGRAMS)}; it is not a proxy"
            sys.stderr.write(message + "\n")
            log.write_termination_message(message)
            sys.exit(UsageError.exit_code)
        case _:
            start.istio_iptables()
