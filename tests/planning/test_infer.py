"""The options of existing rules: the plan of what is inferred is the plan that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, example, given, settings

from integration.kit.command_lines import command_lines
from istio_init.formats.dump_reader import read_dump
from istio_init.formats.iptables_restore import parse
from istio_init.formats.iptables_save import dump
from istio_init.formats.nft.as_rulesets import ruleset as from_inet
from istio_init.formats.nft.layout import layout
from istio_init.model.differences import differences
from istio_init.model.inet import NAMES
from istio_init.options.arguments import arguments
from istio_init.planning.infer import infer
from istio_init.planning.plan import build
from tests.kit.options import options

if TYPE_CHECKING:
    from istio_init.model.rules import Ruleset
    from istio_init.planning.infer import Inference
    from istio_init.planning.plan import Plan

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
USUAL = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"]
USUAL += ["-d", "15090,15021,15020", "--enable-ipv6=false"]


def planned(words: list[str]) -> Plan:
    result = options(words, {})
    assert result is not None
    return build(result)


def saved(plan: Plan) -> tuple[Ruleset, ...]:
    """The rules as iptables-save prints them: without signatures."""
    return tuple(parse(dump(ruleset), ruleset.family) for ruleset in plan.rulesets)


def native(plan: Plan) -> tuple[Ruleset, ...]:
    """The rules as they are read from native tables, whose sets keep neither order nor overlaps."""
    tables = [layout(plan.rulesets, name) for name in NAMES]
    return tuple(from_inet(tables, ruleset.family) for ruleset in plan.rulesets)


def inferred(rulesets: tuple[Ruleset, ...], plan: Plan, *, native: bool = False) -> Plan:
    """The plan of the options that are inferred, which must be exact."""
    inference = infer(rulesets, plan.routing, native=native)
    assert inference is not None
    assert inference.exact, (inference.remainder, inference.missing)
    # As a command line, which is what a user gets.
    again = options(arguments(inference.options), {})
    assert again is not None
    return build(again)


def same(one: tuple[Ruleset, ...], other: tuple[Ruleset, ...]) -> bool:
    return all(not list(differences(a, b)) for a, b in zip(one, other, strict=True))


@MANY
@given(command_lines)
@example(["-u", "1337", "-i", "0.0.0.0/0", "--rule-comments", "--no-enable-ipv6"])
def test_the_inferred_options_make_the_same_plan(words: list[str]) -> None:
    plan = planned(words)
    for rulesets in (plan.rulesets, saved(plan)):
        inference = inferred(rulesets, plan)
        assert same(inference.rulesets, plan.rulesets)
        assert inference.routing == plan.routing


@MANY
@given(command_lines)
def test_native_rules_give_options_that_make_the_same_sets(words: list[str]) -> None:
    # nft has no spelling for these names of interfaces (test_nft.py).
    assume(not any(word.endswith(("\\+", "\\*")) for each in words for word in each.replace(" ", "").split(",")))
    plan = planned(words)
    inference = inferred(native(plan), plan, native=True)
    assert same(native(inference), native(plan))
    assert inference.routing == plan.routing


@pytest.mark.parametrize(
    "further",
    [
        [],
        ["-m", "TPROXY", "-t", "7", "-r", "99"],
        ["--redirect-dns", "--dns-servers", "10.96.0.10"],
        ["--redirect-dns", "--capture-all-dns"],
        ["-b", "80,443", "-d", ""],
        ["-i", "10.0.0.0/8", "-x", "10.1.0.0/16", "-q", "9000", "-o", "22,25"],
        ["-c", "eth1", "-k", "k6t-1,k6t-2"],
        ["-u", "1337,1338", "-g", "7", "--istio-outbound-owner-groups-exclude", "7,8"],
        ["--exclude-uids-for-ports", "tcp:443,8000-8100:1000;udp:*:2000-3000"],
    ],
    ids=" ".join,
)
def test_usual_options_come_back_as_they_were(further: list[str]) -> None:
    words = [*USUAL, *further]
    plan = planned(words)
    for rulesets in (plan.rulesets, saved(plan)):
        inference = infer(rulesets, plan.routing)
        assert inference is not None
        assert inference.exact
        assert arguments(inference.options) == arguments(options(words, {}))  # type: ignore[arg-type]


def edited(old: str, new: str) -> Inference:
    """What is inferred from a usual pod's dump in which one line is another."""
    text = dump(planned(USUAL).rulesets[0])
    assert f"{old}\n" in text
    inference = infer(read_dump(text.replace(f"{old}\n", f"{new}\n" if new else "")))
    assert inference is not None
    return inference


def test_a_strange_rule_in_a_chain_remains() -> None:
    last = "-A ISTIO_OUTPUT -j ISTIO_REDIRECT"
    inference = edited(last, f"-A ISTIO_OUTPUT -m mark --mark 0x7 -j RETURN\n{last}")
    assert not inference.exact
    assert inference.remainder == ("ipv4 nat ISTIO_OUTPUT rule 9 unexpected: -m mark --mark 0x7 -j RETURN",)


def test_a_missing_rule_is_named() -> None:
    inference = edited("-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN", "")
    assert inference.remainder == ("ipv4 nat ISTIO_OUTPUT rule 4 missing: -m owner --uid-owner 1337 -j RETURN",)


def test_other_programs_rules_are_no_options() -> None:
    entry = "-A PREROUTING -p tcp -j ISTIO_INBOUND"
    inference = edited(
        entry, f"-A PREROUTING -i eth7 -j RETURN\n-A PREROUTING -p tcp -m tcp --dport 22 -j ACCEPT\n{entry}"
    )
    assert inference.exact
    assert inference.options.kube_virt_interfaces == ()


def test_a_chain_without_rules_means_what_the_injection_asks_for() -> None:
    text = dump(planned(USUAL).rulesets[0])
    kept = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("-A ISTIO_OUTPUT "))
    inference = infer(read_dump(kept))
    assert inference is not None
    assert inference.options.istio_service_cidr == "*"
    assert {difference.kind for _, difference in inference.differences} == {"missing"}


def test_missing_routes_are_named() -> None:
    plan = planned([*USUAL, "-m", "TPROXY"])
    inference = infer(plan.rulesets, ())
    assert inference is not None
    assert inference.differences == ()
    assert inference.missing == plan.routing


def test_nothing_of_istio_gives_nothing() -> None:
    assert infer(read_dump("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i eth0 -j RETURN\nCOMMIT\n")) is None
