"""What shells complete: real ones, set up as docs/completion.md says, with a terminal where they want one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from integration.kit.namespace import Namespace
from integration.kit.program import ROOT
from istio_init.cli.app import app
from istio_init.model import parsers

# What is typed before the Tab, and what the last word becomes.
TYPED = {
    "istio-iptables --istio-inbound-i": "--istio-inbound-interception-mode",
    "istio-iptables -m T": "TPROXY",
    "istio-iptables -b '*' --log_output_level de": "debug",
    "istio-init exp": "explain",
    "istio-init explain --output j": "json",
}
APPLICATION = app({})
VERBS = {str(each.name) for each in APPLICATION.registered_commands}
VERBS |= {str(each.name) for each in APPLICATION.registered_groups}
# What is typed, and all that is offered.
OFFERED = {
    "istio-init ": VERBS,
    "istio-iptables -m ": set(parsers.MODES),
}
PATIENCE = 60
INTERACTIVE = {"bash": ["--noprofile", "-i"], "zsh": ["-i"]}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user of no settings, who finds the program first."""
    paths = [str(Path(sys.executable).parent), "/usr/bin", "/bin"]
    return {"HOME": str(tmp_path), "PATH": os.pathsep.join(paths), "TERM": "dumb", "LANG": "C.UTF-8"}


def set_up(shell: str, environment: dict[str, str]) -> None:
    """Do what docs/completion.md says for the shell."""
    page = (ROOT / "docs/completion.md").read_text()
    match = re.search(rf"^```{shell}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert match, f"docs/completion.md does not tell how {shell} is set up"
    # With something left to do: a shell becomes the program that is its last, and then there is none to be found.
    command = [f"/usr/bin/{shell}", "-c", f"{match[1]}:\n"]
    subprocess.run(command, env=environment, check=True, capture_output=True)


@pytest.mark.parametrize("shell", INTERACTIVE)
def test_a_shell_at_a_terminal_completes(shell: str, environment: dict[str, str], namespace: Namespace) -> None:
    set_up(shell, environment)
    # Should a line ever be run instead of given up, it is not the machine that is programmed.
    words = ["netns", "exec", namespace.name, f"/usr/bin/{shell}", *INTERACTIVE[shell]]
    child = pexpect.spawn(
        "/usr/sbin/ip", words, env=environment, dimensions=(60, 250), encoding="utf-8", timeout=PATIENCE
    )
    try:
        _cleared(child, 0)
        for number, (typed, word) in enumerate(TYPED.items(), 1):
            child.send(f"{typed}\t")
            child.expect_exact(word[len(typed.split()[-1]) :])
            _cleared(child, number)
        for number, (typed, offered) in enumerate(OFFERED.items(), 100):
            child.send(f"{typed}\t\t")
            missing = sorted(offered)
            while missing:
                del missing[child.expect_exact(missing)]
            _cleared(child, number)
    finally:
        child.close(force=True)


def _cleared(child: pexpect.spawn[str], number: int) -> None:
    """Give up what is typed, and wait until the shell has done something else."""
    child.send("\x15")
    child.sendline(f"echo cleared-$(({number} + 1000))")
    child.expect_exact(f"cleared-{number + 1000}")


def test_fish_completes(environment: dict[str, str]) -> None:
    set_up("fish", environment)
    for typed, words in {**{typed: {word} for typed, word in TYPED.items()}, **OFFERED}.items():
        # The same that Tab asks for.
        command = ["/usr/bin/fish", "-c", "complete --do-complete $argv[1]", typed]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert {line.partition("\t")[0] for line in done.stdout.splitlines()} == words, typed


@pytest.mark.parametrize("program", ["istio-iptables", "istio-init"])
def test_each_program_shows_its_script(program: str, environment: dict[str, str]) -> None:
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    for shell in ("bash", "zsh", "fish"):
        request = environment | {variable: f"source_{shell}"}
        done = subprocess.run([program], env=request, capture_output=True, text=True, check=True)
        assert f"{variable}=complete_{shell}" in done.stdout
        syntax = [f"/usr/bin/{shell}", "-n", "/dev/stdin"]
        subprocess.run(syntax, input=done.stdout, env=environment, text=True, check=True)
