"""Text of other programs in the kernel moves no cursor, colours nothing and begins no line; JSON has it as it is."""

from __future__ import annotations

import pytest

from integration.kit.asking import ask
from integration.kit.namespace import Namespace
from integration.kit.program import refuse, succeed

# An escape sequence, a line that looks like one of a log, and a change of direction.
HOSTILE = "\x1b[2J\x1b[31m\r\n2026-01-01T00:00:00.000000Z\terror\tforged \u202e"
PLAN = ("-u", "1337", "-i", "*", "-b", "*")
VERBS = {
    "check": (), "plan": (), "show": (), "doctor": (),
    "explain": ("--live", "--outbound", "--to", "192.0.2.1:80"), "prove": ("--live",),
}  # fmt: skip


@pytest.fixture
def hostile(namespace: Namespace) -> Namespace:
    """Rules of another program in built-in chains and in one of Istio's; a chain and an interface with such names."""
    succeed(namespace, *PLAN)
    for chain in ("OUTPUT", "PREROUTING", "ISTIO_OUTPUT"):
        rule = ("-A", chain, "-p", "tcp", "-m", "comment", "--comment", HOSTILE, "-j", "RETURN")
        namespace.run("iptables-legacy", "-t", "nat", *rule)
    namespace.run("iptables-legacy", "-t", "nat", "-N", "evil\x1b[m")
    namespace.run("iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-o", "a\x1b[m", "-j", "evil\x1b[m")
    return namespace


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\n2026-01-01" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_prints_it_as_it_is(hostile: Namespace, verb: str) -> None:
    said = ask(hostile, verb, *VERBS[verb], *PLAN)
    assert said.output
    assert harmless(said.output), said.output
    assert harmless(said.errors.replace("\t", " ")), said.errors


def test_neither_does_an_error_of_a_run(hostile: Namespace) -> None:
    line = refuse(hostile, *PLAN)
    assert "\\x1b[2J" in line
    assert harmless(line.replace("\t", " "))


def test_json_is_exact(hostile: Namespace) -> None:
    tables = ask(hostile, "show", "--output", "json", *PLAN).told["tables"]
    rules = [rule["rule"] for table in tables for chain in table["chains"] for rule in chain["rules"]]
    assert any(HOSTILE in rule for rule in rules)
