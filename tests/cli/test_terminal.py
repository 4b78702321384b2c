"""Colours, the pager and Ctrl-C at a terminal, and --version."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pexpect
import pytest

from istio_init.cli import version
from istio_init.cli.app import app, main
from tests.project.test_man_pages import commands

ROOT = Path(__file__).parents[2]
VERB = [sys.executable, "-c", "from istio_init.cli.console import istio_init; istio_init()"]
LONG = ("explain", "-u", "1337", "-i", "*", "-b", "*", "--outbound", "--to", ":80")
PLAIN = {"PATH": "/usr/bin:/bin", "TERM": "xterm", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "ENVOY_USER": "0"}
ESCAPE = "\x1b["
PATIENCE = 60


def spawned(*argv: str, lines: int = 24, environ: Mapping[str, str] = PLAIN) -> pexpect.spawn[str]:
    """A command on a terminal of so many lines."""
    words, environment = [*VERB[1:], *argv], {**PLAIN, **environ}
    return pexpect.spawn(
        VERB[0], words, env=environment, dimensions=(lines, 100), encoding="utf-8", timeout=PATIENCE
    )  # fmt: skip


def screen(*argv: str, environ: Mapping[str, str], lines: int = 24) -> str:
    """What a terminal of so many lines shows of a command."""
    child = spawned(*argv, lines=lines, environ=environ)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    return str(child.before)


def piped(*argv: str, environ: Mapping[str, str] = PLAIN) -> str:
    return subprocess.run([*VERB, *argv], env=environ, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("argv", "environ", "colored"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": ""}, True),
        ((), {"TERM": "dumb"}, False),
        (("--color", "never"), {}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
    ],
)
def test_colours_on_a_terminal(argv: tuple[str, ...], environ: dict[str, str], colored: bool) -> None:
    for line in ([*LONG, *argv], [*argv, *LONG]):
        shown = screen(*line, lines=200, environ={"ISTIO_INIT_PAGER": "", **environ})
        assert (ESCAPE in shown) == colored
        assert "Verdict: captured" in shown


def test_colours_in_a_pipe_are_asked_for() -> None:
    plain, coloured = piped(*LONG), piped(*LONG, "--color", "always")
    assert ESCAPE not in plain
    assert ESCAPE in coloured
    without = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in without.splitlines()] == plain.splitlines()


def test_a_long_answer_goes_to_the_pager_and_a_short_one_does_not() -> None:
    pager = {"ISTIO_INIT_PAGER": "sed s/^/paged:/", "PAGER": "false"}
    assert screen(*LONG, environ=pager).startswith("paged:")
    assert "paged:" not in screen(*LONG, "--no-pager", environ=pager)
    assert "paged:" not in screen("--no-pager", *LONG, environ=pager)
    assert "paged:" not in screen(*LONG, lines=500, environ=pager)
    assert "paged:" not in screen(*LONG, "--output", "json", environ=pager)
    assert screen(*LONG, environ={"PAGER": "sed s/^/paged:/"}).startswith("paged:")


@pytest.mark.parametrize("pager", ["", "cat", "no-such-program", "'"])
def test_without_a_pager_that_works_it_is_printed(pager: str) -> None:
    assert "Verdict: captured" in screen(*LONG, environ={"ISTIO_INIT_PAGER": pager})


def test_ctrl_c_belongs_to_the_pager() -> None:
    """As less takes it: it goes on, and q ends it."""
    child = spawned(*LONG)
    child.expect("Verdict: captured")
    child.sendintr()
    child.send("q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "Traceback" not in str(child.before)


def test_a_colour_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--color", "sometimes", *LONG], {}) == 255
    assert capsys.readouterr().err == "istio-init: --color: 'sometimes': unknown: use auto, always or never\n"


def test_every_verb_of_the_table_knows_the_flags() -> None:
    for path, verb in commands(app({})):
        if path[0] != "cni":
            assert {"--color", "--no-pager"} <= {name for each in verb.params for name in each.opts}, path


def test_the_version_says_commit_and_libraries() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = dict(line.split(maxsplit=1) for line in version.text().splitlines()[1:])
    assert lines["commit"] == (head or "unknown")
    assert lines["libip4tc"] == "missing" or "libip4tc.so.2" in lines["libip4tc"]
    assert {"python", "kernel", "libip6tc", "nf_tables", "python-iptables"} <= lines.keys()


@pytest.mark.parametrize("packed", [False, True])
def test_the_commit_of_a_checkout(packed: bool, tmp_path: Path) -> None:
    def git(*argv: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *identity, *argv], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert version._checked_out(str(tmp_path / ".git")) == ""
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    if packed:
        git("pack-refs", "--all")
    head = git("rev-parse", "HEAD").strip()
    assert version._checked_out(str(tmp_path / ".git")) == head
    git("worktree", "add", "-q", str(tmp_path / "tree"))
    assert version._checked_out(str(tmp_path / "tree" / ".git")) == head
    git("checkout", "-q", "--detach")
    assert version._checked_out(str(tmp_path / ".git")) == head


def test_work_that_takes_long_shows_that_it_goes_on() -> None:
    """A proof of two families takes more than its patience here, which is none."""
    program = "from istio_init.cli.verbs import output; output.PATIENCE = 0; " + VERB[2]
    words = ["-c", program, "prove", "-i", "*", "-b", "*", "--enable-ipv6", "--no-pager"]
    child = pexpect.spawn(VERB[0], words, env=PLAIN, dimensions=(300, 100), encoding="utf-8", timeout=PATIENCE)
    child.expect("proving ipv4 and ipv6")
    child.expect("Proved: ")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
