"""The page's scripts against the simulator: thousands of packets, followed by both, have the same answers.

The expected answers are made from simulate/ in each run, so they are never out of date.
"""

from __future__ import annotations

import shlex
from collections import Counter
from functools import cache
from random import Random
from typing import Any, NamedTuple

import pytest

from istio_init.cli.verbs import packet_flags
from istio_init.draw.html.model import PageSubject, model
from istio_init.model.rules import FAMILIES
from tests.kit import page_cases, page_scripts
from tests.planning.cases import CASES, argv

NAMESPACES, PACKETS = 100, 25


class Vectors(NamedTuple):
    """What the scripts are given, and what the simulator says: None for what is no request."""

    batches: list[dict[str, Any]]
    expected: list[list[page_cases.Prediction | None]]


@cache
def vectors() -> Vectors:
    """Packets through the plans of all cases, and through whatever a namespace may hold; the same ones in each run."""
    chance, result = Random("istio-init"), Vectors([], [])
    plans = [page_cases.planned(shlex.join(argv(name))) for name in CASES]
    for about in (*plans, *(page_cases.namespace(chance) for _ in range(NAMESPACES))):
        family = chance.choice(FAMILIES)
        packets = [page_cases.question(chance) for _ in range(PACKETS)]
        subject = PageSubject(about.options, about.rulesets, about.facts, about.envoy, about.live)
        values = {**model(subject), **packet_flags.form_defaults()}
        result.batches.append({"model": values, "family": family, "packets": packets})
        result.expected.append([page_cases.prediction(about, typed, family) for typed in packets])
    return result


def differing(changed: dict[str, str] | None = None, at_once: int = 1000) -> tuple[dict[str, Any], Any, Any] | None:
    """The first packet that scripts and simulator answer differently, and both answers."""
    result = vectors()
    for start in range(0, len(result.batches), at_once):
        batches = result.batches[start : start + at_once]
        actual = page_scripts.answers(batches, changed)
        for batch, expected, answers in zip(batches, result.expected[start:], actual, strict=False):
            for typed, message, answer in zip(batch["packets"], expected, answers, strict=True):
                if not page_cases.agrees(message, answer):
                    return typed, message, answer
    return None


def test_the_scripts_answer_as_the_simulator() -> None:
    assert differing() is None


def test_the_packets_end_in_every_way() -> None:
    every = [message for expected in vectors().expected for message in expected]
    ends = Counter(leg["end"] for message in every if message for leg in message.described["legs"])
    assert {
        *("outbound", "inbound", "tunnel", "dns", "application", "wire", "forwarded"),
        *("dropped", "queued", "undecided"),
    } == ends.keys()
    assert sum(message is None for message in every) > 100
    assert len(every) > 3000


FAULTS = {
    "trace.js": (
        ('OUTPUT: ["raw", "mangle", "nat",', 'OUTPUT: ["raw", "nat", "mangle",'),
        ("if (!target.goto) {", "if (true) {"),
        ('answer = passesOn(rule.target) ? "CONTINUE" : "UNDECIDED";', 'answer = "CONTINUE";'),
        ("if (packet.translated.includes(NAT_SIDES[packet.hook])) {", "if (false) {"),
        ('base.policy === "DROP"', "false"),
    ),
    "semantics.js": (
        ("and(packet.mark, match.mask)", "packet.mark"),
        ("owner === null ? negated", "owner === null ? false"),
        ("return (mark & mask) >>> 0;", "return mark & mask;"),
        ("packet.redirected && ", ""),
        ('(address === null) {\n    return [packet, "DROP"]', '(address === null) {\n    return [packet, "ACCEPT"]'),
        ("(!local || ipv6 ? ", "(!local ? "),
        ("if (low !== high) {", "if (false) {"),
    ),
    "path.js": (
        ("uid: null, gid: null,\n  });", "\n  });"),
        ("if (rule || packet.tproxy_port) {", "if (packet.tproxy_port) {"),
        ("bound = envoy.mark ? start.source :", "bound ="),
        ("if (first(packet.destination) === 0) {", "if (false) {"),
    ),
    "packet.js": (('(narrow === "" || scope(address) === narrow)', "true"),),
    "request.js": (('gid: account(model, "gid", typed.gid || typed.uid),', 'gid: account(model, "gid", typed.gid),'),),
}  # fmt: skip


@pytest.mark.parametrize(("script", "right", "wrong"), [(name, *pair) for name in FAULTS for pair in FAULTS[name]])
def test_a_fault_in_a_script_is_noticed(script: str, right: str, wrong: str) -> None:
    name = script.removesuffix(".js")
    text = page_scripts.source(name)
    assert text.count(right) == 1, right
    assert differing({name: text.replace(right, wrong)}, at_once=15) is not None
