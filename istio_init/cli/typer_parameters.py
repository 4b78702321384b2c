"""Commands of Typer made from the table of options: parameters, and their values turned into Options."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from istio_init.cli import help_page, terminal
from istio_init.cli.given_options import SHAPING, given_options
from istio_init.cli.pod_owners import pod_ips, pod_owners, pod_privileges
from istio_init.errors_rare import OptionError
from istio_init.log import Log
from istio_init.options.arguments import text
from istio_init.options.contradictions import contradictions
from istio_init.options.table import OPTIONS, Option, Options, resolve
from istio_init.record import Record
from istio_init.runner.defaults import account

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from istio_init.model.rules import Network
    from istio_init.options.privileges import Privileges
    from istio_init.options.workload import RunsAs


def _print_version(requested: bool) -> None:  # noqa: FBT001 (Typer calls it with the switch)
    if requested:
        from istio_init.cli import version

        sys.stdout.write(version.text())
        raise typer.Exit


def _print_all_help(context: typer.Context, requested: bool) -> None:  # noqa: FBT001 (Typer calls it with the switch)
    if requested:
        sys.stdout.write(help_page.page(context.command, context, everything=True))
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        metavar="",
        help="Print the version and the libraries, and do nothing.",
        callback=_print_version,
        is_eager=True,
    ),
]

HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", metavar="", help="Show every option; the man pages have them, too.", callback=_print_all_help,
        is_eager=True,
    ),
]  # fmt: skip

Color = Annotated[
    str | None,
    typer.Option(
        "--color",
        metavar="|".join(terminal.COLORS),
        help="Colours. auto: on a terminal, unless NO_COLOR is set.",
        callback=terminal.set_color,
        show_default=False,
    ),
]

NoPager = Annotated[
    bool,
    typer.Option(
        "--no-pager", metavar="", help="Print long answers at once on a terminal, not by $PAGER or less.",
        callback=terminal.set_no_pager,
    ),
]  # fmt: skip


def with_options(  # noqa: PLR0913 (a command's properties)
    verb: Callable[..., int],
    environ: Mapping[str, str],
    *,
    pods: bool = False,
    prints: bool = False,
    without: Collection[str] = (),
    shared: Sequence[inspect.Parameter] = (),
) -> Callable[..., int]:
    """A Typer command that takes the verb's parameters and the options of the table, except the fields in `without`.

    The verb is called with the resolved Options as its first argument (after the context, if it has one), and with
    its own parameters, which its signature declares for Typer, by name. With `pods` the options may also come from a
    manifest (--from-pod); a verb that `prints` options gets those that say how the pod's container logs, too. `shared`
    are parameters whose callbacks do all there is to do. Raises OptionError for a wrong value; warnings are logged.
    """
    offered = [each for each in OPTIONS if each.field not in without]

    def options(values: dict[str, Any]) -> Options:
        pod, texts = values.pop(_POD.name, ""), _texts(values)
        if pods and texts.get("network_namespace") == "":
            # An unset shell variable, for example: the user does not mean the caller's own namespace.
            raise OptionError("--network-namespace", "", "empty: name one, or leave the flag out")
        return _options(pod, texts, environ, prints=prints)

    return _command(verb, [*([_POD] if pods else []), *map(_parameter, offered)], options, shared)


def with_texts(
    verb: Callable[..., int],
    offered: Sequence[Option],
    shorts_taken: Collection[str],
    shared: Sequence[inspect.Parameter] = (),
) -> Callable[..., int]:
    """A Typer command that takes some options of the table in addition to the verb's own parameters.

    The verb is called with the texts of the options on the command line, by field. `shorts_taken` are its own short
    flags.
    """
    return _command(verb, [_parameter(each, short=each.short not in shorts_taken) for each in offered], _texts, shared)


def _command(
    verb: Callable[..., int],
    options: Sequence[inspect.Parameter],
    make: Callable[[dict[str, Any]], object],
    shared: Sequence[inspect.Parameter],
) -> Callable[..., int]:
    """A Typer command with a verb's own parameters and these options, which `make` turns into one argument.

    That argument is the verb's first, after the context if it has one.
    """
    first, *own = list(inspect.signature(verb, eval_str=True).parameters.values())
    with_context = first.annotation is typer.Context
    own = own[1:] if with_context else own
    parameters = [
        *([first] if with_context else []),
        *(_verb_parameter(flag) for parameter in own for flag in flags_of(parameter)),
        *options,
        *shared,
        _HELP_ALL,
    ]

    def command(**values: Any) -> int:  # noqa: ANN401 (each verb has its own)
        context = [values.pop(first.name)] if with_context else []
        for each in (*shared, _HELP_ALL):
            values.pop(each.name)
        own_values = {parameter.name: _own_value(parameter, values) for parameter in own}
        return verb(*context, make(values), **own_values)

    described: Any = command
    described.__signature__ = inspect.Signature(
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    described.__annotations__ = {each.name: each.annotation for each in described.__signature__.parameters.values()}
    return command


def flags_of(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The flags of a verb's own parameter: the fields of a Record with their defaults, else the parameter itself."""
    kind = parameter.annotation
    if not (isinstance(kind, type) and issubclass(kind, Record)):
        return [parameter]
    hints, default = get_type_hints(kind, include_extras=True), parameter.default
    only = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field, only, default=getattr(default, field), annotation=hints[field])
        for field in kind._fields
    ]


def _own_value(parameter: inspect.Parameter, values: dict[str, Any]) -> object:
    """The value of a verb's own parameter, made from the values of its flags, which are taken out of `values`."""
    flags = flags_of(parameter)
    if flags == [parameter]:
        return values.pop(parameter.name)
    return parameter.annotation(**{flag.name: values.pop(flag.name) for flag in flags})


_POD = inspect.Parameter(
    "from_pod",
    inspect.Parameter.KEYWORD_ONLY,
    default=typer.Option(
        "",
        "--from-pod",
        metavar="FILE",
        show_default=False,
        help="Take the options from this pod's manifest, - for standard input; flags take precedence.",
    ),
    annotation=str,
)

# What every verb of istio-init has; the names do not begin with an underscore, as Typer makes flags of them.
TERMINAL = (
    inspect.Parameter("color", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Color),
    inspect.Parameter("no_pager", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=NoPager),
)

_HELP_ALL = inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll)


def _options(pod: str, texts: Mapping[str, str], environ: Mapping[str, str], *, prints: bool) -> Options:
    """The options from texts by field, completed from the environment, or from a pod's manifest instead."""
    warnings: list[str] = []
    owners: tuple[RunsAs, ...] = ()
    allowed: Privileges | None = None
    ips: tuple[Network, ...] = ()
    named = {each.field for each in SHAPING if each.field in texts or any(environ.get(name) for name in each.variables)}
    if pod:
        from istio_init.cli.input_file import read
        from istio_init.options.from_pod import FLAG, read_pod

        reading = read_pod(read(FLAG, pod), "standard input" if pod == "-" else pod, texts, account)
        options, warnings = reading.options, list(reading.misfits)
        owners, allowed, ips = reading.workload.owners(), reading.privileges, reading.ips
        named |= {each.field for each in SHAPING}
        own = _log_options(texts, environ)
    else:
        options = own = resolve(texts, environ, account, warnings=warnings)
    pod_ips.set(ips)
    pod_owners.set(owners)
    pod_privileges.set(allowed)
    given_options.set(frozenset(named))
    log = Log(own.log_output_level, as_json=own.log_as_json, targets=own.log_target)
    for warning in (*warnings, *contradictions(options)):
        log.warn(warning)
    return options if prints else options.replace(**{each.field: getattr(own, each.field) for each in _LOGGING})


_LOGGING = tuple(each for each in OPTIONS if each.field in {"log_output_level", "log_as_json", "log_target"})


def _log_options(texts: Mapping[str, str], environ: Mapping[str, str]) -> Options:
    """How this program logs. A pod's log options are for its container; they must hide no warning and name no file."""
    return resolve(
        {each.field: texts[each.field] for each in _LOGGING if each.field in texts},
        {name: environ[name] for each in _LOGGING for name in each.variables if name in environ},
        account,
    )


def _texts(values: Mapping[str, str | bool | list[str] | None]) -> dict[str, str]:
    """Typer's values as the texts that options.resolve parses; options not on the command line are left out."""
    return {field: _text(value) for field, value in values.items() if value is not None and value != []}


def _text(value: str | bool | list[str]) -> str:  # noqa: FBT001 (a switch's value)
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else value


def _parameter(each: Option, *, short: bool = True) -> inspect.Parameter:
    flags = [f"--{name}/--no-{name}" if each.switch else f"--{name}" for name in (each.flag, *each.aliases)]
    default = typer.Option(
        None,
        *flags,
        *([f"-{each.short}"] if each.short and short else []),
        help=help_text(each),
        metavar="" if each.switch else each.metavar,
        show_default=False,
        autocompletion=_completion(each.choices),
    )
    kind: Any = bool | None if each.switch else list[str] | None if each.repeats else str | None
    return inspect.Parameter(each.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _completion(choices: Sequence[str]) -> Callable[[str], list[str]] | None:
    """The completion for a value that is one of a few words; None lets the shell complete file names."""
    return (lambda incomplete: [each for each in choices if each.startswith(incomplete)]) if choices else None


def _verb_parameter(parameter: inspect.Parameter) -> inspect.Parameter:
    """A verb's own parameter: a switch takes no value, and the words that a metavar lists are completed."""
    for option in getattr(parameter.annotation, "__metadata__", ()):
        words = (getattr(option, "metavar", None) or "").split("|")
        if len(words) > 1 and all(word.islower() for word in words):
            option.autocompletion = _completion(words)
        if getattr(parameter.annotation, "__origin__", None) is bool:
            option.metavar = ""
    return parameter


def help_text(each: Option) -> str:
    """An option's help with its default and the variables that its name does not imply."""
    facts = [f"default: {default}"] if (default := default_text(each)) else []
    if others := [variable for variable in each.variables if variable != each.field.upper()]:
        facts.append(f"env: {', '.join(others)}")
    return f"{each.help} ({'; '.join(facts)})" if facts else each.help


def default_text(each: Option) -> str:
    """An option's default as a user would write it; empty where there is none."""
    return "" if each.default is False else text(each, each.default)
