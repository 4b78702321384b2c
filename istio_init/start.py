"""The fast way in: argv to Options with next to nothing imported, for every pod that waits.

What this parser does not take (help, completion, a mistake) goes to the Typer command in cli.py, which
owns every message. It never takes what Typer would refuse, and means the same by what it takes; a
property-based test holds the two together.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import sys

from istio_init.backends import account
from istio_init.errors import InitError
from istio_init.options import OPTIONS, Option, Options, resolve
from istio_init.run import run
from istio_init.values import FALSE, TRUE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import NoReturn

PROGRAM = "istio-iptables"

# By which a shell asks Typer for completions, with an empty command line.
COMPLETION_VARIABLE = "_ISTIO_IPTABLES_COMPLETE"

INTERRUPTED = 130  # 128 + SIGINT, as a shell tells it

SWITCH_VALUES = TRUE | FALSE

_LONG = {f"--{each.flag}": each for each in OPTIONS}
_SHORT = {f"-{each.short}": each for each in OPTIONS if each.short}
_NEGATED = {f"--no-{each.flag}": each for each in OPTIONS if each.switch}


def parse(argv: Sequence[str]) -> dict[str, str] | None:
    """The text of each option in argv, by field, the last one where it is given twice; None for anything unusual.

    As Istio's flags: --flag VALUE, --flag=VALUE, -f VALUE, -fVALUE, -f=VALUE; a switch is --flag or --flag=true.
    """
    given: dict[str, str] = {}
    rest = iter(argv)
    for token in rest:
        pair = _long(token, rest) if token.startswith("--") else _short(token, rest)
        if pair is None:
            return None
        given[pair[0].field] = pair[1]
    return given


def _long(token: str, rest: Iterator[str]) -> tuple[Option, str] | None:
    flag, equals, text = token.partition("=")
    if flag in _NEGATED:
        return None if equals else (_NEGATED[flag], "false")
    option = _LONG.get(flag)
    return _value(option, text if equals else None, rest) if option else None


def _short(token: str, rest: Iterator[str]) -> tuple[Option, str] | None:
    option = _SHORT.get(token[:2])
    if option is None or (option.switch and len(token) > 2):
        return None
    return _value(option, token[2:].removeprefix("=") if len(token) > 2 else None, rest)


def _value(option: Option, attached: str | None, rest: Iterator[str]) -> tuple[Option, str] | None:
    if option.switch:
        # Checked here, too: of an option given twice resolve() sees the last only.
        return (option, attached or "true") if attached is None or attached in SWITCH_VALUES else None
    text = next(rest, None) if attached is None else attached
    return None if text is None else (option, text)


def options(argv: Sequence[str], environ: Mapping[str, str]) -> Options | None:
    """The Options for a command line, or None where Typer should have a look."""
    given = None if COMPLETION_VARIABLE in environ else parse(argv)
    if given is None:
        return None
    try:
        return resolve(given, environ, account)
    except InitError:
        return None


def main(argv: Sequence[str], environ: Mapping[str, str], program: str = PROGRAM) -> int:
    """Run `istio-iptables` with these arguments, called by whatever name; returns the exit code."""
    wanted = options(argv, environ)
    if wanted is not None:
        return run(wanted, environ)
    try:
        from istio_init import cli

        return cli.main(argv, environ, program)
    except KeyboardInterrupt:
        return INTERRUPTED


def istio_iptables() -> NoReturn:
    """The console script `istio-iptables`."""
    hold_closed_streams()
    _leave(main(sys.argv[1:], environment()))


def istio_clean_iptables() -> NoReturn:
    """The console script `istio-clean-iptables`: the same as `istio-iptables --cleanup-only`."""
    hold_closed_streams()
    _leave(main(["--cleanup-only", *sys.argv[1:]], environment(), "istio-clean-iptables"))


def environment() -> dict[str, str]:
    """The process' environment, decoded as os.environ has it."""
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in os.environ.items()
    }


def hold_closed_streams() -> None:
    """Keep the numbers of closed standard streams from what is opened next: a log line would be written to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Gets the lowest number that is free, this one; writing to it fails as it would have.
            os.open("/dev/null", os.O_RDONLY)


def _leave(code: int) -> NoReturn:
    # Everything is written and nothing needs tearing down: an orderly interpreter shutdown takes 1 to 2 ms.
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)  # noqa: SLF001 (that is its name)
