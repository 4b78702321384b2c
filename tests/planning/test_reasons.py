"""Every rule of a plan states its reason where it is made."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from istio_init.formats.iptables_save import rule_text
from istio_init.model.rules import Rule, Verdict
from istio_init.model.unknown import Comment
from istio_init.planning import capture
from istio_init.planning.capture import CONCERNS, PlannedRule
from istio_init.simulate.purposes import purpose, purposes
from tests.kit.packets import ARTICLE, Sidecar
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.model.rules import Family
    from istio_init.options.table import Options

    Concern = Callable[[Options, Family], Iterator[PlannedRule]]


@pytest.mark.parametrize("concern", CONCERNS, ids=lambda concern: concern.__name__)
def test_every_rule_of_a_concern_states_its_reason(concern: Concern) -> None:
    yielded = 0
    for name in CASES:
        sidecar = Sidecar(shlex.join(argv(name)))
        for ruleset in sidecar.plan.rulesets:
            for planned in (each for some in concern(sidecar.options, ruleset.family) for each in some.expanded()):
                yielded += 1
                assert planned.why, f"{concern.__name__}: no reason for {planned.chain} {rule_text(planned.rule)}"
                text, flags = map(str, planned.why[:2])
                assert text.strip(), concern.__name__
                assert all(flag.startswith("-") for flag in flags.split()), flags
    assert yielded, f"no case has a rule of {concern.__name__}"


@pytest.mark.parametrize("name", [name for name in CASES if "comments" not in name])
def test_rule_comments_are_the_reasons_and_change_nothing_else(name: str) -> None:
    """Each rule has its reason, in so few bytes that nft reads it; without the comments it is the rule as ever."""
    plain, commented = Sidecar(shlex.join(argv(name))), Sidecar(shlex.join([*argv(name), "--rule-comments"]))
    for one, other in zip(plain.plan.rulesets, commented.plan.rulesets, strict=True):
        reasons = purposes(commented.options, other.family)
        for table, chains in zip(one.tables, (table.chains for table in other.tables), strict=True):
            for chain, noted in zip(table.chains, chains, strict=True):
                for rule, actual in zip(chain.rules, noted.rules, strict=True):
                    *matches, comment = actual.matches
                    assert actual.replace(matches=tuple(matches)) == rule
                    assert isinstance(comment, Comment)
                    assert 0 < len(comment.text.encode()) <= 127
                    assert reasons[table.name, chain.name, actual].text.encode() == comment.text.encode()


def test_a_rule_without_a_reason_has_no_purpose_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(_: Options, __: Family) -> Iterator[PlannedRule]:
        yield PlannedRule("nat", "ISTIO_OUTPUT", Rule((), Verdict("DROP"), ours=True))

    monkeypatch.setattr(capture, "CONCERNS", (*CONCERNS, bare))
    reasons = purposes(Sidecar(ARTICLE).options, "ipv4")
    assert purpose(reasons, "nat", "ISTIO_OUTPUT", Rule((), Verdict("DROP"))) is None


def test_reasons_name_values_of_options_only_when_they_are_read() -> None:
    sidecar = Sidecar(f"{ARTICLE} -p 15101")
    planned = next(each for each in capture.redirect_chains(sidecar.options, "ipv4") if each.chain == "ISTIO_REDIRECT")
    assert "{options.envoy_port}" in planned.why[0]
    reasons = purposes(sidecar.options, "ipv4")
    assert reasons["nat", "ISTIO_REDIRECT", planned.rule].text == "to Envoy's outbound listener, port 15101"
