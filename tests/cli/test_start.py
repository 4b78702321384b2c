"""The fast parser and Typer: what one takes, the other takes and means the same."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.models import CommandInfo

import istio_init.cli
from istio_init import __version__
from istio_init.cli import app, console, help_page, start, typer_options
from istio_init.options import argv as argv_module
from istio_init.options.argv import COMPLETION_VARIABLE
from istio_init.options.table import OPTIONS, Option, Options
from istio_init.runner.defaults import account
from tests.kit.options import options

VALUES = [
    "", "*", "80", "15001", "80,443", "1-5", "0", "70000", "10.0.0.0/8", "::1", "eth0", "REDIRECT", "TPROXY", "nft",
    "true", "false", "=", "=80", "5s", "all", "1.13", "-b", "--dry-run", "-", "--", "é", "\n", "default:info", "1337",
]  # fmt: skip
FLAGS = [f"--{each.flag}" for each in OPTIONS] + [f"-{each.short}" for each in OPTIONS if each.short]
SWITCHES = [f"--{each.flag}" for each in OPTIONS if each.switch]
VALUED = [flag for flag in FLAGS if flag not in SWITCHES and flag != "-n"]


def tokens() -> st.SearchStrategy[tuple[str, ...]]:
    flag = st.sampled_from(FLAGS)
    value = st.sampled_from(VALUES)
    return st.one_of(
        st.tuples(st.sampled_from(VALUED), value),
        st.tuples(st.builds("{}={}".format, flag, value)),
        st.tuples(st.builds("{}{}".format, flag, value)),
        st.tuples(st.sampled_from(SWITCHES)),
        st.tuples(st.builds("--no-{}".format, st.sampled_from(SWITCHES).map(lambda text: text[2:]))),
        st.tuples(
            st.sampled_from(
                [
                    "--help",
                    "-np",
                    "-h",
                    "-nf",
                    "-fnp=80",
                    "--vklog",
                    "--vklog=1",
                    "--netns",
                    "--envoy",
                    "x",
                    "-",
                    "--",
                    "-n",
                    "--no-envoy-port",
                ]
            )
        ),
        st.tuples(st.text(max_size=5)),
    )


def by_typer(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> Options | None:
    """The Options that the Typer command would run with, or None where it refuses or prints something else."""
    observed: list[Options] = []

    def run(options: Options, _environ: object, _warnings: object = ()) -> int:
        observed.append(options)
        return 0

    monkeypatch.setattr(typer_options, "run", run)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = typer_options.main(argv, {})
    assert "Traceback" not in errors.getvalue()
    assert code in {0, 1, 255}
    if code:
        # JSON goes straight to the file descriptor, as the log does.
        assert errors.getvalue().count("\n") == (0 if typer_options.wants_json(argv) else 1)
    return observed[0] if observed else None


@settings(max_examples=300, deadline=None)
@given(st.lists(tokens(), max_size=4).map(lambda groups: [token for group in groups for token in group]))
@example(["-p=15001", "-n=true", "--redirect-dns=false", "-b", "*", "-x", ""])
@example(["-x", "-b"])
@example(["--dry-run=maybe"])
@example(["--netns", ""])
def test_what_the_fast_parser_takes_typer_takes_with_the_same_meaning(argv: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast, full = options(argv, {}), by_typer(argv, monkeypatch)
    if fast is not None:
        assert full == fast


@pytest.mark.parametrize(
    ("argv", "word", "code"),
    [
        # What pflag refuses is 255, as of Istio's program; what that refuses itself is 1.
        (["--envoy-prt", "1"], "--envoy-port", 255),
        (["--envoy-port"], "--envoy-port", 255),
        (["--dry-run=maybe"], "--dry-run", 255),
        (["--dry-run="], "--dry-run", 255),
        (["--probe-timeout", "soon"], "--probe-timeout", 255),
        (["--iptables-probe-port", "x"], "--iptables-probe-port", 255),
        (["--vklog", "loud"], "--vklog", 255),
        (["--restore-format=perhaps"], "--restore-format", 255),
        (["--" + "a" * 1_000_000], "option", 255),
        (["-p", "0"], "-p", 1),
        (["-m", "HALF"], "-m", 1),
        (["-i", "10.0.0.0/99"], "-i", 1),
        (["-x", "-b"], "-x", 1),
        (["-x", "-b", "*"], "--istio-service-exclude-cidr (-x): '-b': looks like a flag", 1),
        (["--istio-service-exclude-cidr", "*"], "--istio-service-exclude-cidr", 1),
        (["-u", "nobody-has-this-name"], "-u", 1),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    argv: list[str], word: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(argv, {}) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err
    assert err.count("\n") == 1
    assert err.startswith("istio-iptables: ")
    assert len(err) < 600
    assert err.rstrip("\n").isprintable()


@pytest.mark.parametrize("flag", ["--log_as_json", "--log-as-json", "--log_as_json=true"])
def test_a_mistake_is_json_where_the_log_is_json(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert start.main([flag, "--envoy-prt", '"1\n'], {}) == 255
    line = json.loads(capfd.readouterr().err)
    assert line["level"] == "error"
    assert "--envoy-prt" in line["msg"]


@pytest.mark.parametrize(
    ("argv", "same", "warnings"),
    [
        (["--dry-run", "false"], ["-n"], ["'false': ignored"]),
        (["a", "-n", "b", "--", "-p", "1"], ["-n"], ["'a b -p 1': ignored"]),
        (["-"], [], ["'-': ignored"]),
        (["-np", "80"], ["-n", "-p", "80"], []),
        (["-np80"], ["-n", "-p", "80"], []),
        (["-nnp=80"], ["-n", "-p", "80"], []),
        (["-fn"], ["-n"], []),
        (["-fn=false"], ["--no-dry-run"], []),
        (["--vklog", "9", "--vklog=-1", "--log_rotate", "x", "--log_rotate_max_age", "3"], [], []),
        (["--host-nsenter-exec"], [], []),
        (["--iptables-trace-logging=false", "--restore-format", "-f"], [], []),
        (["--netns", "/x", "--log-as-json", "--log-output-level", "debug", "--family", "ipv4"],
         ["--network-namespace", "/x", "--log_as_json", "--log_output_level", "debug", "--ip-family", "ipv4"], []),
        (["--log_target", "stdout", "--log-target=/a,/b"], ["--log_target", "stdout,/a,/b"], []),
    ],
)  # fmt: skip
def test_words_as_pflag_has_them(argv: list[str], same: list[str], warnings: list[str]) -> None:
    message: list[str] = []
    result = argv_module.options(argv, {}, account, message)
    assert result is not None
    assert result == options(same, {})
    assert len(message) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(message, warnings, strict=True))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert by_typer(argv, monkeypatch) == result


def test_a_variables_mistake_names_the_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main([], {"ISTIO_INBOUND_PORTS": "http"}) == 1
    assert "ISTIO_INBOUND_PORTS: 'http'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help=true"], ["-h=1"], ["-nh=T"], ["--help-all=TRUE"]])
def test_help_takes_a_value_as_switches_do(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert start.main(words, {}) == 0
    assert capsys.readouterr().out.startswith("Usage: ")


def test_help_that_is_switched_off_runs(capfd: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--help=false", "--dry-run", "--no-enable-ipv6"], {}) == 0
    assert "*nat\n" in capfd.readouterr().out
    assert start.main(["--help=maybe"], {}) == 255
    assert "--help: 'maybe': not true or false" in capfd.readouterr().err


def test_all_help_lists_every_flag_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--help-all"], {}) == 0
    text = capsys.readouterr().out
    for group in ("Ports", "Addresses", "Owners", "DNS", "TPROXY", "Running"):
        assert f"\n{group}:\n" in text
    for option in OPTIONS:
        assert f"--{option.flag}" in text.replace(",", " ").split()


def test_help_has_examples_first_and_few_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--help"], {}) == 0
    text = capsys.readouterr().out
    assert text.index("Examples:") < text.index("Options:")
    lines = [line for line in text.partition("Options:")[2].splitlines() if line.startswith("  -")]
    options_shown = " ".join(lines).replace(",", " ").split()
    assert sum(f"--{option.flag}" in options_shown for option in OPTIONS) == 10
    assert "--help-all" in text


def failing(monkeypatch: pytest.MonkeyPatch, module: str, error: BaseException) -> None:
    """The module's next import ends in this error."""

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise error

    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(istio_init.cli, module.rpartition(".")[2])
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def test_ctrl_c_while_typer_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "istio_init.cli.typer_options", KeyboardInterrupt())
    assert start.main(["--help"], {}) == 130


def test_ctrl_c_while_the_verbs_are_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "istio_init.cli.app", KeyboardInterrupt())
    with pytest.raises(SystemExit) as ended:
        console.istio_init()
    assert ended.value.code == 130


@pytest.mark.parametrize("error", [MemoryError(), ImportError("not readable"), OSError(24, "Too many open files")])
def test_what_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Without enough memory or open files, an import is what fails first."""
    failing(monkeypatch, "istio_init.cli.typer_options", error)
    assert start.main(["--help"], {}, "istio-clean-iptables") == 1
    failing(monkeypatch, "istio_init.cli.app", error)
    with pytest.raises(SystemExit) as ended:
        console.istio_init()
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    programs = ("istio-clean-iptables", "istio-init")
    assert [line.split("; raise the limits of memory")[0] for line in lines] == [
        f"{program}: can't go on: {str(error) or 'MemoryError'}" for program in programs
    ]


@pytest.mark.parametrize("program", [start, app])
def test_the_version_and_help_by_its_short_name(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"], {}) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"istio-init {__version__}"
    assert program.main(["-h"], {}) == 0
    short = capsys.readouterr().out
    assert program.main(["--help"], {}) == 0
    assert capsys.readouterr().out == short
    assert "--version" in short


def verbs() -> list[list[str]]:
    """Every verb of `istio-init`, of its groups too, and each group itself."""
    application = app.app({})
    result = [[str(each.name)] for each in application.registered_commands]
    for group in application.registered_groups:
        assert group.typer_instance
        inner = group.typer_instance.registered_commands
        result += [[str(group.name)], *([str(group.name), command_name(each)] for each in inner)]
    return [[], *result]


def command_name(each: CommandInfo) -> str:
    assert each.callback
    return each.name or each.callback.__name__


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_fits_eighty_columns(verb: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*verb, flag], {}) == 0
    text = capsys.readouterr().out
    assert "--help" in text
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("verb", [each for each in verbs() if each], ids=" ".join)
def test_help_starts_with_examples_and_shows_what_people_use(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*verb, "--help"], {}) == 0
    text = capsys.readouterr().out
    assert text.index("Examples:") < text.index("Options:")
    few, every = _flags(text), _flags(all_help(verb, capsys))
    assert few <= every
    assert len(few) <= 32
    assert not few & RARE_FLAGS
    assert RARE_FLAGS & every or verb[0] not in {"explain", "draw"}


RARE_FLAGS = {"--connmark", "--reply", "--speaks", "--repair-rate"}


def all_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert app.main([*verb, "--help-all"], {}) == 0
    return capsys.readouterr().out


def _flags(text: str) -> set[str]:
    lines = [line for line in text.partition("Options:")[2].splitlines() if line.startswith("  -")]
    return {word for word in " ".join(lines).replace(",", " ").split() if word.startswith("--")}


@pytest.mark.parametrize("verb", ["install", "agent"])
def test_the_verbs_for_a_node_show_options_that_other_verbs_have_as_well(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["cni", verb, "--help"], {}) == 0
    assert {"--capture-backend", "--log-as-json"} <= _flags(capsys.readouterr().out)


def test_the_help_of_cleaning_is_about_cleaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--cleanup-only", "--help"], {}, "istio-clean-iptables") == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: istio-clean-iptables [OPTIONS]\n\nRemove all Istio rules")
    assert "  istio-clean-iptables --dry-run\n" in text


def examples() -> list[list[str]]:
    return [shlex.split(line) for result in help_page.EXAMPLES.values() for _, line in result]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_the_examples_are_command_lines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each is taken as it is: help for it is printed, which comes behind every mistake in a flag's name."""
    program, *argv = words
    code = app.main([*argv, "--help"], {}) if program == "istio-init" else start.main([*argv, "--help"], {}, program)
    assert code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", sorted(app.WITHOUT))
def test_an_option_without_effect_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for field in app.WITHOUT[verb]:
        option = next(each for each in OPTIONS if each.field == field)
        words = [f"--{option.flag}"] if option.switch else [f"--{option.flag}", "1"]
        assert app.main([verb, *words], {}) == 255
        if (verb, field) != ("draw", "ip_family"):
            assert f"{option.names()}: has no effect here" in capsys.readouterr().err


@pytest.mark.parametrize("group", [[], ["cni"]], ids=" ".join)
def test_help_where_no_verb_is_named(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help is the answer; there is nothing to be said beside it."""
    assert app.main(group, {}) == 255
    output = capsys.readouterr()
    assert "Usage: " in output.out
    assert output.err == ""


def test_a_shell_that_asks_for_completions_changes_nothing() -> None:
    assert options([], {COMPLETION_VARIABLE: "complete_bash"}) is None


@pytest.mark.parametrize("each", OPTIONS, ids=lambda option: option.field)
def test_what_a_shell_is_offered_is_taken_and_nothing_else_of_a_few_words(each: Option) -> None:
    for word in each.choices:
        assert options([f"--{each.flag}", word], {}) is not None
    if each.choices:
        assert options([f"--{each.flag}", "none-of-these"], {}) is None
