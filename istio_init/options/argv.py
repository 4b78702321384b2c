"""The fast parser: argv to the text of each option, with next to nothing imported.

It takes the usual spellings only. Help, completion and mistakes are None, and left to Typer, which owns every message.
It never takes what Typer would refuse, and means the same by what it takes; a property-based test compares the two.
"""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.model.parsers import FALSE, TRUE
from istio_init.options.table import OPTIONS, Option, Options, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from istio_init.options.table import Lookup

# By which a shell asks Typer for completions, with an empty command line.
COMPLETION_VARIABLE = "_ISTIO_IPTABLES_COMPLETE"

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


def options(argv: Sequence[str], environ: Mapping[str, str], lookup: Lookup) -> Options | None:
    """The Options for a command line, or None where Typer should have a look."""
    given = None if COMPLETION_VARIABLE in environ else parse(argv)
    if given is None:
        return None
    try:
        return resolve(given, environ, lookup)
    except InitError:
        return None
