"""Text of other programs in the kernel moves no cursor, colours nothing and begins no line; JSON has it as it is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from integration.kit.asking import Answer, ask
from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.program import refuse, start, succeed

if TYPE_CHECKING:
    from pathlib import Path

# An escape sequence, a line that looks like one of a log, and a change of direction; markup of rich, which no end has.
HOSTILE = "\x1b[2J\x1b[31m\r\n2026-01-01T00:00:00.000000Z\terror\tforged \u202e"
CHAIN, INTERFACE, PROCESS = "evil[/]\x1b[m", "a[b]\x1b[m", "p[/]\x1b[2J\r\n"
PLAN = ("-u", "1337", "-i", "*", "-b", "*")
LIVE = ("--live", "--outbound", "--to", "192.0.2.1:80")
VERBS = {
    "check": ("check",), "plan": ("plan",), "show": ("show",), "show-table": ("show", "--output", "table"),
    "doctor": ("doctor", "--all"), "options": ("options", "--live"), "explain": ("explain", *LIVE),
    "prove": ("prove", "--live"),
    "dot": ("draw", "--live", "--format", "dot"), "mermaid": ("draw", "--live", "--format", "mermaid"),
    "svg": ("draw", "--live", "--format", "svg"), "html": ("draw", "--live", "--format", "html"),
}  # fmt: skip
# Of these only what a terminal acts on: they have lines of their own.
PICTURES = {"dot", "mermaid", "svg", "html"}


@pytest.fixture(params=["legacy", "nft"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend in whose tables other programs have rules."""
    return str(request.param)


@pytest.fixture
def hostile(namespace: Namespace, backend: str) -> Namespace:
    """Rules of another program in built-in chains and in one of Istio's; a chain and an interface with such names."""
    succeed(namespace, *PLAN, *BACKENDS[backend])
    tool = f"iptables-{backend}"
    for chain in ("OUTPUT", "PREROUTING", "ISTIO_OUTPUT"):
        rule = ("-A", chain, "-p", "tcp", "-m", "comment", "--comment", HOSTILE, "-j", "RETURN")
        namespace.run(tool, "-t", "nat", *rule)
    namespace.run(tool, "-t", "nat", "-N", CHAIN)
    namespace.run(tool, "-t", "nat", "-A", CHAIN, "-j", "ACCEPT")
    namespace.run(tool, "-t", "nat", "-I", "OUTPUT", "-o", INTERFACE, "-j", CHAIN)
    namespace.run("ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", "far")
    namespace.run("ip", "addr", "add", "192.0.2.2/24", "dev", INTERFACE)
    namespace.run("ip", "link", "set", INTERFACE, "up")
    return namespace


@pytest.fixture
def process(namespace: Namespace) -> Iterator[int]:
    """The id of a process in the namespace with such a name."""
    code = f"import ctypes,sys; ctypes.CDLL(None).prctl(15, {PROCESS.encode()!r}); print(flush=True); sys.stdin.read()"
    command = ["ip", "netns", "exec", namespace.name, sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as named:
        assert named.stdout
        named.stdout.readline()
        yield named.pid
        named.communicate()


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\n2026-01-01" not in text


def assert_harmless(message: Answer) -> None:
    assert message.output or message.errors
    assert harmless(message.output), message.output
    assert harmless(message.errors.replace("\t", " ")), message.errors


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_prints_it_as_it_is(hostile: Namespace, backend: str, verb: str) -> None:
    assert_harmless(answer(hostile, verb, *PLAN, *BACKENDS[backend]))


def answer(namespace: Namespace, verb: str, *flags: str) -> Answer:
    """What a verb says; options reads the flags from the rules, and pictures may have tabs."""
    message = ask(namespace, *VERBS[verb], *(() if verb == "options" else flags))
    assert message.output or verb == "options"
    return message._replace(output=message.output.replace("\t", " ")) if verb in PICTURES else message


@pytest.mark.parametrize("verb", ["explain", "prove", "show", "doctor", "check", "plan"])
def test_nor_the_name_of_a_process(namespace: Namespace, process: int, verb: str) -> None:
    words = {"explain": ("--outbound", "--to", "192.0.2.1:80")}.get(verb, ())
    assert_harmless(ask(namespace, verb, *words, "--pid", str(process), *PLAN))


def test_neither_does_an_error_of_a_run(hostile: Namespace, backend: str) -> None:
    line = refuse(hostile, *PLAN, *BACKENDS[backend])
    assert "\\x1b[2J" in line
    assert harmless(line.replace("\t", " "))


def test_nor_a_run_that_warns_or_waits(hostile: Namespace, backend: str, tmp_path: Path) -> None:
    """A rule that decides before Istio's, and the name of the process that holds the lock."""
    hostile.run(f"iptables-{backend}", "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-m", "comment", "--comment", HOSTILE)
    hostile.run(
        f"iptables-{backend}", "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-m", "comment", "--comment", HOSTILE,
        "-j", "ACCEPT",
    )  # fmt: skip
    with held(tmp_path / "lock") as lock:
        run = start(hostile, *PLAN, *BACKENDS[backend], "--reconcile", "--wait", "0.5", env={"XTABLES_LOCKFILE": lock})
        _, message = run.communicate()
    assert "held by" in message
    assert harmless(message.replace("\t", " ")), message
    run = start(hostile, *PLAN, *BACKENDS[backend], "--reconcile")
    _, message = run.communicate()
    assert "warn" in message
    assert harmless(message.replace("\t", " ")), message


@contextlib.contextmanager
def held(path: Path) -> Iterator[str]:
    """A lock file that a process with a hostile name holds."""
    code = (
        f"import ctypes,fcntl,sys; ctypes.CDLL(None).prctl(15, {PROCESS.encode()!r}); f = open(sys.argv[1], 'w');"
        "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, os.fspath(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        yield os.fspath(path)
        holder.communicate()


def test_json_is_exact(hostile: Namespace, backend: str) -> None:
    tables = ask(hostile, "show", "--output", "json", *PLAN, *BACKENDS[backend]).document["tables"]
    rules = [rule["rule"] for table in tables for chain in table["chains"] for rule in chain["rules"]]
    assert any(HOSTILE in rule for rule in rules)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_prints_a_comment_of_native_tables_as_it_is(namespace: Namespace, verb: str) -> None:
    native = "--native-nftables"
    succeed(namespace, *PLAN, native, "--rule-comments")
    text = f'add rule inet istio-proxy-nat istio-output tcp dport 9 counter return comment "{HOSTILE}"'
    namespace.run("nft", "-f", "-", text=text)
    assert_harmless(answer(namespace, verb, *PLAN, native, "--rule-comments"))
    assert harmless(refuse(namespace, *PLAN, native, "--rule-comments").replace("\t", " "))
