"""The Typer command: help, completion, and the words for every mistake on a command line.

A plain run never comes here (start.py); the command is made from the same table of options.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer import rich_utils

from istio_init import __version__
from istio_init.cli.start import PROGRAM
from istio_init.errors import InitError, printable
from istio_init.errors_rare import OptionError, UsageError
from istio_init.log import write_termination_message
from istio_init.model.parsers import boolean
from istio_init.options.arguments import text
from istio_init.options.table import FLAG_FOR_A_VALUE, OPTIONS, Option, Options, resolve
from istio_init.runner.defaults import account
from istio_init.runner.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

LONGEST_MESSAGE = 400
NARROWEST_HELP = 116

HELP = """Program this network namespace so that all TCP traffic passes through the sidecar proxy.

Inbound connections go to Envoy's port 15006, outbound ones to 15001; the proxy's own are left alone.
A drop-in for Istio's program of the same name.

Where a flag is not given, the environment variable of its name in capitals with underscores is read
(--istio-inbound-ports: ISTIO_INBOUND_PORTS); --envoy-port has none."""


def main(argv: Sequence[str], environ: Mapping[str, str], program: str = PROGRAM) -> int:
    """Parse with Typer and run; returns the exit code, 255 where the command line can't be understood."""
    return invoke(app(environ), program, argv)


class Output:
    """Standard output, whose failures are an InitError, and which can write what its encoding can't: with escapes."""

    def __init__(self) -> None:
        # None where it is closed (kernel/host/process.py).
        self._stream: TextIO = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (to the end)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (the stream's own)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As io.TextIOBase.write."""
        encoding = self._stream.encoding or "utf-8"
        self._tell(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """As io.IOBase.flush."""
        self._tell(self._stream.flush)

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except BrokenPipeError:
            self._let_go()
            raise
        except OSError as error:
            self._let_go()
            raise InitError(f"standard output: can't be written: {error.strerror}") from error

    def _let_go(self) -> None:
        """Have Python's shutdown not try once more to write what is left."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def invoke(application: typer.Typer, program: str, argv: Sequence[str]) -> int:
    """Run a Typer application; a mistake or an error is one line on standard error. Returns the exit code."""
    # Narrower, rich would cut the longest flags' names.
    rich_utils.MAX_WIDTH = max(shutil.get_terminal_size().columns, NARROWEST_HELP)
    try:
        with contextlib.redirect_stdout(Output()):
            code = application(args=[spelled(token) for token in argv], prog_name=program, standalone_mode=False)
            sys.stdout.flush()
    except typer.TyperException as error:
        message = _swallowed(argv) or error.format_message()
        # Where no verb was named, the help that was printed says it all.
        return _refuse(program, message, UsageError.exit_code) if message else UsageError.exit_code
    except InitError as error:
        return _refuse(program, str(error), error.exit_code)
    except (typer.Abort, BrokenPipeError):
        return 1
    return int(code or 0)


def _refuse(program: str, message: str, code: int) -> int:
    """One line on standard error, whatever a user typed."""
    line = " ".join(message.split())
    safe = printable(line[: LONGEST_MESSAGE + 1])
    if len(line) > LONGEST_MESSAGE:
        safe = safe[:LONGEST_MESSAGE] + "..."
    if sys.stderr:
        sys.stderr.write(f"{program}: {safe}\n")
    write_termination_message(safe)
    return code


def _swallowed(argv: Sequence[str]) -> str:
    """Which flag of ours took the flag behind it for its value, in words: what then is wrong lies further on."""
    named = {name: each for each in OPTIONS if not each.switch for name in (f"--{each.flag}", f"-{each.short}")}
    for flag, value in pairwise(argv):
        if flag in named and value.startswith("-"):
            return str(OptionError(named[flag].names(), value, FLAG_FOR_A_VALUE))
    return ""


def spelled(token: str) -> str:
    """A token of Istio's flag syntax in Typer's: --switch=false is --no-switch, and -p=1 is --envoy-port=1."""
    flag, equals, text = token.partition("=")
    if not equals:
        return token
    for each in OPTIONS:
        if each.switch and flag in {f"--{each.flag}", f"-{each.short}"}:
            try:
                return f"--{each.flag}" if boolean(text) else f"--no-{each.flag}"
            except ValueError as error:
                raise UsageError(f"{each.names()}: {text!r}: {error}") from None
        if each.short and flag == f"-{each.short}":
            return f"--{each.flag}={text}"
    return token


def say_version(asked: bool) -> None:  # noqa: FBT001 (Typer calls it with the switch)
    """Print the version and end, where `asked`."""
    if asked:
        sys.stdout.write(f"istio-init {__version__}\n")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", metavar="", help="Print the version, and do nothing.", callback=say_version, is_eager=True
    ),
]

# Istio's program knows both.
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}


def app(environ: Mapping[str, str]) -> typer.Typer:
    """The Typer application for this environment."""

    def command(options: Options, *, _version: Version = False) -> int:
        return run(options, environ)

    application = typer.Typer(
        add_completion=True, rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings=HELP_FLAGS
    )
    application.command(name=PROGRAM, help=HELP)(with_options(command, environ))
    return application


def with_options(verb: Callable[..., int], environ: Mapping[str, str], *, pods: bool = False) -> Callable[..., int]:
    """A Typer command that takes every option of the table beside the verb's own parameters.

    The verb is called with the resolved Options as its first argument, and with its own parameters by name;
    these are declared in its signature as Typer wants them. With `pods` the options may also come --from-pod.
    OptionError where a value is wrong.
    """
    parameters = [*([_POD] if pods else []), *map(_parameter, OPTIONS)]
    return _command(verb, parameters, lambda given: _asked(given.pop(_POD.name, ""), _texts(given), environ))


def with_texts(verb: Callable[..., int], offered: Sequence[Option], shorts_taken: Container[str]) -> Callable[..., int]:
    """A Typer command that takes some options of the table beside the verb's own parameters.

    The verb is called with the texts of those that were given, by field. `shorts_taken` are short flags of its own.
    """
    return _command(verb, [_parameter(each, short=each.short not in shorts_taken) for each in offered], _texts)


def _command(
    verb: Callable[..., int], options: Sequence[inspect.Parameter], first: Callable[[dict[str, Any]], object]
) -> Callable[..., int]:
    """A Typer command with a verb's own parameters and these options; `first` makes its first argument of theirs."""
    own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
    parameters = [*map(_told, own), *options]

    def command(**given: Any) -> int:  # noqa: ANN401 (each verb has its own)
        mine = {parameter.name: given.pop(parameter.name) for parameter in own}
        return verb(first(given), **mine)

    described: Any = command
    described.__signature__ = inspect.Signature(
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_POD = inspect.Parameter(
    "from_pod",
    inspect.Parameter.KEYWORD_ONLY,
    default=typer.Option(
        "",
        "--from-pod",
        metavar="FILE",
        show_default=False,
        help="Take the options from this pod's manifest, - for standard input; those that are given beside it win.",
    ),
    annotation=str,
)


def _asked(pod: str, texts: Mapping[str, str], environ: Mapping[str, str]) -> Options:
    """The options that texts mean by field, with the environment, or a pod's manifest in its place."""
    if not pod:
        return resolve(texts, environ, account)
    from istio_init.cli.input_file import read
    from istio_init.options.from_pod import FLAG, from_pod

    return from_pod(read(FLAG, pod), "standard input" if pod == "-" else pod, texts, account)


def _texts(given: Mapping[str, str | bool | None]) -> dict[str, str]:
    """What Typer read, as the text that options.resolve parses; what was not given is left out."""
    return {
        field: str(text).lower() if isinstance(text, bool) else text
        for field, text in given.items()
        if text is not None
    }


def _parameter(each: Option, *, short: bool = True) -> inspect.Parameter:
    names = [f"--{each.flag}/--no-{each.flag}" if each.switch else f"--{each.flag}"]
    if each.short and short:
        names.append(f"-{each.short}")
    default = typer.Option(
        None,
        *names,
        help=help_text(each),
        metavar="" if each.switch else each.metavar,
        rich_help_panel=each.group,
        show_default=False,
        autocompletion=_completion(each.choices),
    )
    kind: Any = bool | None if each.switch else str | None
    return inspect.Parameter(each.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _completion(choices: Sequence[str]) -> Callable[[str], list[str]] | None:
    """What a shell is offered for a value that is one of a few words; None leaves it to the shell: files."""
    return (lambda incomplete: [each for each in choices if each.startswith(incomplete)]) if choices else None


def _told(parameter: inspect.Parameter) -> inspect.Parameter:
    """A verb's own parameter; a switch takes no value, and where a metavar lists words, a shell is offered them."""
    for told in getattr(parameter.annotation, "__metadata__", ()):
        words = (getattr(told, "metavar", None) or "").split("|")
        if len(words) > 1 and all(word.islower() for word in words):
            told.autocompletion = _completion(words)
        if getattr(parameter.annotation, "__origin__", None) is bool:
            told.metavar = ""
    return parameter


def help_text(each: Option) -> str:
    """An option's help with its default and the variables that its name does not tell."""
    facts = [f"default: {default}"] if (default := default_text(each)) else []
    if others := [variable for variable in each.variables if variable != each.field.upper()]:
        facts.append(f"env: {', '.join(others)}")
    return f"{each.help} ({'; '.join(facts)})" if facts else each.help


def default_text(each: Option) -> str:
    """An option's default as a user would write it; empty where there is none."""
    return "" if each.default is False else text(each, each.default)
