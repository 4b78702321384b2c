"""--rule-comments in the real kernel: the listing tools print each rule's purpose, in every backend."""

from __future__ import annotations

import re
import shlex

import pytest

from integration.kit import backends
from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.program import refuse, succeed
from istio_init.formats.nft.layout import ONE_FAMILY, UNHEARD
from istio_init.model.rules import IPV4
from istio_init.simulate.purposes import purposes
from tests.kit.packets import Sidecar
from tests.planning.cases import argv

WITH, WITHOUT = argv("rule-comments"), [word for word in argv("rule-comments") if word != "--rule-comments"]


def listed(namespace: Namespace, backend: str) -> list[str]:
    """The rules of all tables as iptables -L or nft list prints them, a line each."""
    if backend == "native":
        lines = namespace.run("nft", "list", "ruleset", "inet").splitlines()
        return [line for line in lines if "counter" in line]
    printed = [namespace.run(f"iptables-{backend}", "-w", "-t", each, "-n", "-L") for each in ("raw", "mangle", "nat")]
    lines = [line for text in printed for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("Chain ", "target "))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["rule-comments", "rule-comments-tproxy"])
def test_each_rule_is_listed_with_its_purpose(namespace: Namespace, backend: str, case: str) -> None:
    succeed(namespace, *BACKENDS[backend], *argv(case))
    recorded = {purpose.text for purpose in purposes(Sidecar(shlex.join(argv(case))).options, IPV4).values()}
    actual = set()
    for line in listed(namespace, backend):
        comment = re.search(r'/\* (.*) \*/|comment "([^"]*)"$', line)
        assert comment, line
        actual.add(comment[1] or comment[2])
    own = {ONE_FAMILY, UNHEARD} if backend == "native" else set()
    assert recorded <= actual <= recorded | own


@pytest.mark.parametrize("backend", BACKENDS)
def test_comments_come_and_go_with_the_flag(namespace: Namespace, backend: str) -> None:
    """With other comments the rules are others: `check` says so, and --reconcile writes them."""
    choice = BACKENDS[backend]
    succeed(namespace, *choice, *WITHOUT)
    plain = backends.rules(namespace, backend)
    assert ask(namespace, "check", *choice, *WITH).code == 3
    assert "differ" in refuse(namespace, *choice, *WITH)
    succeed(namespace, *choice, *WITH, "--reconcile")
    assert ask(namespace, "check", *choice, *WITH).code == 0
    assert ask(namespace, "check", *choice, *WITHOUT).code == 3
    assert "in place" in succeed(namespace, *choice, *WITH)
    succeed(namespace, *choice, *WITHOUT, "--reconcile")
    assert backends.rules(namespace, backend) == plain
    succeed(namespace, *choice, *WITH, "--reconcile")
    succeed(namespace, *choice, "--cleanup-only")
    assert not backends.rules(namespace, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_show_and_plan_print_the_comments(namespace: Namespace, backend: str) -> None:
    choice = BACKENDS[backend]
    succeed(namespace, *choice, *WITH)
    shown = ask(namespace, "show", *choice, *WITH)
    assert (shown.code, "a captured destination" in shown.output) == (0, True)
    assert "foreign" not in shown.output
    difference = ask(namespace, "plan", *choice, *WITHOUT)
    assert difference.output.startswith("drifted")
    assert "a captured destination" in difference.output


@pytest.mark.parametrize("backend", BACKENDS)
def test_explain_and_prove_follow_the_rules_as_without(namespace: Namespace, backend: str) -> None:
    choice = BACKENDS[backend]
    succeed(namespace, *choice, *WITH)
    packet = ("--outbound", "--to", "10.2.3.4:80", "--live")
    explained = ask(namespace, "explain", *packet, *choice, *WITH)
    assert explained.code == 0
    assert "15001" in explained.output
    assert ask(namespace, "prove", *choice, *WITH, "--live").code == 0
