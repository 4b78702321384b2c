"""`istio-init options`: the command line that makes rules: of the options given, or of the rules that exist."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli.given_options import given_options
from istio_init.cli.verbs import live_options
from istio_init.cli.verbs.output import CHECK_EXIT_CODES, choice, print_json
from istio_init.cli.verbs.subject import Container, FromSave, Pid, Where, is_live, placed, require_no_place, saved_rules
from istio_init.errors import printable
from istio_init.errors_rare import UsageError
from istio_init.formats.iptables_save import rule_text
from istio_init.model.routing import command
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.runner import access

if TYPE_CHECKING:
    from istio_init.cli.verbs.live_options import TableReading


def options(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    live: Annotated[bool, typer.Option("--live", help="Read the options from the rules in this namespace.")] = False,
    pid: Pid = None,
    container: Container = None,
    from_save: FromSave = "",
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Print the command line for these options, or the one whose rules exist; exit 3 if rules remain unexplained."""
    form = choice("--output", output, ("text", "json"))
    where = Where(live, pid, container, from_save)
    if not (is_live(options, where) or from_save):
        return _print(live_options.words(options), None, form)
    if flags := sorted(given_options.get()):
        names = ", ".join(f"--{field.replace('_', '-')}" for field in flags)
        raise UsageError(f"{names}: the options are read from the rules: leave it out, or leave out what names a place")
    result = _saved(options, where) if from_save else _live(placed(options, where))
    if result is None:
        return _absent(form)
    resulting, reading = result
    return _print(live_options.words(resulting), reading, form)


def _live(options: Options) -> tuple[Options, TableReading] | None:
    with access.namespace(options):
        reading = next(live_options.readings(options), None)
        return None if reading is None else (live_options.in_backend(reading, options), reading)


def _saved(options: Options, where: Where) -> tuple[Options, TableReading] | None:
    require_no_place(options, live=is_live(options, where))
    inference = live_options.read_dump(saved_rules(where.save))
    return None if inference is None else (inference.options, live_options.TableReading("dump", inference))


def _absent(form: str) -> int:
    if form == "json":
        print_json("options", as_json(None, None))
    else:
        sys.stdout.write("# no Istio rules found\n")
    return CHECK_EXIT_CODES["absent"]


def _print(words: tuple[str, ...], reading: TableReading | None, form: str) -> int:
    exact = reading is None or reading.inference.exact
    if form == "json":
        print_json("options", as_json(words, reading))
    else:
        sys.stdout.writelines(printable(line) + "\n" for line in lines(words, reading))
    return CHECK_EXIT_CODES["in place" if exact else "drifted"]


def lines(words: tuple[str, ...], reading: TableReading | None) -> list[str]:
    """The command, and as a shell's comments how far it makes the rules that exist."""
    shown = [shlex.join(words)]
    if reading is None:
        return shown
    inference = reading.inference
    if inference.exact:
        return [*shown, f"# exact: it makes the rules in the {_place(reading)}"]
    left = len(inference.remainder) + len(inference.missing)
    shown.append(f"# nearest: {left} difference{'s' * (left > 1)} from the rules in the {_place(reading)}:")
    shown += [f"# {text}" for text in inference.remainder]
    return [*shown, *(f"# missing: {command(entry)}" for entry in inference.missing)]


def _place(reading: TableReading) -> str:
    return "dump" if reading.backend == "dump" else f"{reading.backend} tables"


def as_json(words: tuple[str, ...] | None, reading: TableReading | None) -> dict[str, Any]:
    """The same for programs; `differences` are against the plan of the command."""
    inference = reading.inference if reading else None
    return {
        "command": None if words is None else list(words),
        "exact": words is not None and (inference is None or inference.exact),
        "backend": reading.backend if reading else None,
        "differences": [
            {
                "family": family, "kind": each.kind, "table": each.table, "chain": each.chain or None,
                "number": each.number or None, "rule": rule_text(each.rule) if each.rule else None,
            }
            for family, each in (inference.differences if inference else ())
        ],
        "missing_routing": [command(entry) for entry in (inference.missing if inference else ())],
    }  # fmt: skip
