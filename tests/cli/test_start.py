"""The fast parser and Typer: what one takes, the other takes and means the same."""

from __future__ import annotations

import contextlib
import io
import sys
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer import rich_utils
from typer.models import CommandInfo

import istio_init.cli
from istio_init import __version__
from istio_init.cli import app, console, start, typer_options
from istio_init.options.argv import COMPLETION_VARIABLE
from istio_init.options.table import OPTIONS, Option, Options
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
        st.tuples(st.sampled_from(["--help", "-np", "-h", "--envoy", "x", "-", "--", "-n", "--no-envoy-port"])),
        st.tuples(st.text(max_size=5)),
    )


def by_typer(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> Options | None:
    """The Options that the Typer command would run with, or None where it refuses or prints something else."""
    seen: list[Options] = []

    def run(options: Options, _environ: object) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(typer_options, "run", run)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = typer_options.main(argv, {})
    assert "Traceback" not in errors.getvalue()
    assert code in {0, 255}
    if code == 255:
        assert errors.getvalue().count("\n") == 1
    return seen[0] if seen else None


@settings(max_examples=300, deadline=None)
@given(st.lists(tokens(), max_size=4).map(lambda groups: [token for group in groups for token in group]))
@example(["-p=15001", "-n=true", "--redirect-dns=false", "-b", "*", "-x", ""])
@example(["-x", "-b"])
@example(["--dry-run=maybe"])
def test_what_the_fast_parser_takes_typer_takes_with_the_same_meaning(argv: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast, full = options(argv, {}), by_typer(argv, monkeypatch)
    if fast is not None:
        assert full == fast


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--envoy-prt", "1"], "--envoy-port"),
        (["--envoy-port"], "--envoy-port"),
        (["-p", "0"], "-p"),
        (["--dry-run=maybe"], "--dry-run"),
        (["extra"], "extra"),
        (["-x", "-b"], "-x"),
        (["-x", "-b", "*"], "--istio-service-exclude-cidr (-x): '-b': looks like a flag"),
        (["--istio-service-exclude-cidr", "*"], "--istio-service-exclude-cidr"),
        (["\x1b[31m\n" * 100_000], "argument"),
        (["--" + "a" * 1_000_000], "option"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_ends_with_255(
    argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(argv, {}) == 255
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err
    assert err.count("\n") == 1
    assert err.startswith("istio-iptables: ")
    assert len(err) < 600
    assert err.rstrip("\n").isprintable()


def test_a_variables_mistake_names_the_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main([], {"ISTIO_INBOUND_PORTS": "http"}) == 255
    assert "ISTIO_INBOUND_PORTS: 'http'" in capsys.readouterr().err


def test_help_lists_every_flag_under_its_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert start.main(["--help"], {}) == 0
    text = capsys.readouterr().out
    for group in ("Ports", "Addresses", "Owners", "DNS", "TPROXY", "Running"):
        assert f"─ {group} ─" in text
    for option in OPTIONS:
        assert f"--{option.flag} " in text


def interrupted(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Have Ctrl-C pressed while a module is imported."""

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(istio_init.cli, module.rpartition(".")[2])
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def test_ctrl_c_while_typer_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, "istio_init.cli.typer_options")
    assert start.main(["--help"], {}) == 130


def test_ctrl_c_while_the_verbs_are_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, "istio_init.cli.app")
    with pytest.raises(SystemExit) as ended:
        console.istio_init()
    assert ended.value.code == 130


@pytest.mark.parametrize("program", [start, app])
def test_the_version_and_help_by_its_short_name(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"], {}) == 0
    assert capsys.readouterr().out == f"istio-init {__version__}\n"
    assert program.main(["-h"], {}) == 0
    short = capsys.readouterr().out
    assert program.main(["--help"], {}) == 0
    assert capsys.readouterr().out == short
    assert "--version" in short


def verbs() -> list[list[str]]:
    """Every verb of `istio-init`, of its groups too, and each group itself."""
    application = app.app({})
    found = [[str(each.name)] for each in application.registered_commands]
    for group in application.registered_groups:
        assert group.typer_instance
        inner = group.typer_instance.registered_commands
        found += [[str(group.name)], *([str(group.name), command_name(each)] for each in inner)]
    return [[], *found]


def command_name(each: CommandInfo) -> str:
    assert each.callback
    return each.name or each.callback.__name__


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_cuts_no_name_where_it_is_piped(
    verb: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says of no switch that it takes a value, but of those that are Typer's own."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", None)
    assert app.main([*verb, "--help"], {}) == 0
    text = capsys.readouterr().out
    assert "--help" in text
    assert "…" not in text
    valued = {line.split()[1] for line in text.splitlines() if "<bool>" in line}
    assert valued <= {"--help", "--install-completion", "--show-completion"}


@pytest.mark.parametrize("group", [[], ["cni"]], ids=" ".join)
def test_help_where_no_verb_is_named(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help is the answer; there is nothing to be said beside it."""
    assert app.main(group, {}) == 255
    told = capsys.readouterr()
    assert "Usage: " in told.out
    assert told.err == ""


def test_a_shell_that_asks_for_completions_changes_nothing() -> None:
    assert options([], {COMPLETION_VARIABLE: "complete_bash"}) is None


@pytest.mark.parametrize("each", OPTIONS, ids=lambda option: option.field)
def test_what_a_shell_is_offered_is_taken_and_nothing_else_of_a_few_words(each: Option) -> None:
    for word in each.choices:
        assert options([f"--{each.flag}", word], {}) is not None
    if each.choices:
        assert options([f"--{each.flag}", "none-of-these"], {}) is None
