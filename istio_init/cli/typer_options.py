"""istio-iptables with Typer: help, completion, and the message for every mistake on a command line.

A plain run does not import this module (start.py). typer_parameters.py makes the commands.
"""

from __future__ import annotations

import contextlib
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import typer

from istio_init.cli import help_page
from istio_init.cli.pflag import normalised
from istio_init.cli.standard_output import StandardOutput
from istio_init.cli.start import PROGRAM, STARVED
from istio_init.cli.typer_parameters import Version, with_options
from istio_init.errors import InitError, out_of_resources, printable
from istio_init.errors_rare import OptionError, UsageError
from istio_init.log import Log, write_termination_message
from istio_init.model.parsers import TRUE
from istio_init.options.argv import long_option, stray_words
from istio_init.options.table import FLAG_FOR_A_VALUE, OPTIONS, Options
from istio_init.runner.run import run

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


LONGEST_MESSAGE = 400

HELP = """Program this network namespace so that all TCP traffic passes through the sidecar proxy.

Inbound connections go to Envoy's port 15006, outbound ones to 15001; the proxy's own are not captured.
A drop-in for Istio's program of the same name.

Where a flag is not given, the environment variable of its name in capitals with underscores is read
(--istio-inbound-ports: ISTIO_INBOUND_PORTS); --envoy-port has none."""


CLEAN = """Remove all Istio rules from this network namespace: the same as istio-iptables --cleanup-only.

A drop-in for Istio's program of the same name. No flags are needed for rules that are in Istio's chains or signed."""


def main(argv: Sequence[str], environ: Mapping[str, str], program: str = PROGRAM) -> int:
    """Parse with Typer and run; returns the exit code, 255 if the command line can't be parsed."""
    return invoke(app(environ, HELP if program == PROGRAM else CLEAN), program, argv)


def invoke(
    application: typer.Typer,
    program: str,
    argv: Sequence[str],
    *,
    table: bool = True,
    shorts_taken: Collection[str] = (),
) -> int:
    """Run a Typer application; a mistake or an error is one line on standard error. Returns the exit code.

    `table` says whether the command line has the options of the table, in Istio's syntax; `shorts_taken` are short
    flags that mean something else in it.
    """
    try:
        with contextlib.redirect_stdout(StandardOutput()):
            tokens = normalised(argv, shorts_taken) if table else list(argv)
            code = application(args=tokens, prog_name=program, standalone_mode=False)
            sys.stdout.flush()
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stdout.write(error.format_message() + "\n")
            return UsageError.exit_code
        message = _swallowed_flag(argv) or _without_effect(error) or error.format_message()
        return _refuse(program, message, UsageError.exit_code, argv)
    except InitError as error:
        return _refuse(program, str(error), error.exit_code, argv)
    except (typer.Abort, BrokenPipeError):
        return 1
    except STARVED as error:
        return _refuse(program, out_of_resources(error), InitError.exit_code, argv)
    return int(code or 0)


def _refuse(program: str, message: str, code: int, argv: Sequence[str]) -> int:
    """Print one line on standard error, as JSON if the log is JSON; control characters in it are escaped."""
    line = " ".join(message.split())
    safe = printable(line[: LONGEST_MESSAGE + 1])
    if len(line) > LONGEST_MESSAGE:
        safe = safe[:LONGEST_MESSAGE] + "..."
    if wants_json(argv):
        Log("error", as_json=True).error(f"{program}: {safe}")
    elif sys.stderr:
        sys.stderr.write(f"{program}: {safe}\n")
    write_termination_message(safe)
    return code


def wants_json(argv: Sequence[str]) -> bool:
    """Whether a command line, even a wrong one, requests a JSON log."""
    flags = ("--log_as_json", "--log-as-json")
    return any(flag in flags and (not equals or value in TRUE) for flag, equals, value in map(_parted, argv))


def _parted(token: str) -> tuple[str, str, str]:
    return token.partition("=")


def _swallowed_flag(argv: Sequence[str]) -> str:
    """The message for a flag whose value is missing, so that it took the next flag as its value; empty without one."""
    named = {name: each for each in OPTIONS if not each.switch for name in (f"--{each.flag}", f"-{each.short}")}
    for flag, value in pairwise(argv):
        if flag in named and value.startswith("-"):
            return str(OptionError(named[flag].names(), value, FLAG_FOR_A_VALUE))
    return ""


def _without_effect(error: typer.TyperException) -> str:
    """The message for an option of the table that this verb does not take; empty for any other mistake."""
    name = str(getattr(error, "option_name", "")) if type(error).__name__ == "NoSuchOption" else ""
    option = long_option(name.replace("--no-", "--", 1))
    return f"{option.names()}: has no effect here: leave it out" if option else ""


# Istio's program accepts both.
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
# As in pflag programs, words that belong to no flag are ignored, with a warning.
STRAY_WORDS = {"allow_extra_args": True}


def app(environ: Mapping[str, str], about: str = HELP) -> typer.Typer:
    """The Typer application of `istio-iptables` for this environment; `about` is its help's text."""

    def command(context: typer.Context, options: Options, *, _version: Version = False) -> int:
        return run(options, environ, [stray_words(context.args)] if context.args else [])

    application = typer.Typer(
        add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={**HELP_FLAGS, **STRAY_WORDS},
    )  # fmt: skip
    application.command(name=PROGRAM, help=about, cls=help_page.Command)(with_options(command, environ))
    return application
