"""The plan of each case is the golden text, is canonical, and is the same every time."""

from __future__ import annotations

import pytest

from istio_init import Plan, plan
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import dump
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import (
    IPV4,
    IPV6,
    OWN_CHAINS,
    Destination,
    InInterface,
    Jump,
    OutInterface,
    Protocol,
    Source,
)
from istio_init.options.argv import parse as parse_argv
from istio_init.options.table import OPTIONS
from tests.kit.options import options
from tests.planning.cases import CASES, GOLDEN, argv, text

HEADER_ORDER = (Source, Destination, InInterface, OutInterface, Protocol)


def plan_of(name: str) -> Plan:
    chosen = options(argv(name), {})
    assert chosen is not None
    return plan(chosen)


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_golden_one(name: str) -> None:
    assert text(name) == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_text_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_same_options_give_the_same_plan(name: str) -> None:
    assert plan_of(name) == plan_of(name)


@pytest.mark.parametrize("name", CASES)
def test_the_text_reads_back_as_the_same_rules(name: str) -> None:
    for ruleset in plan_of(name).rulesets:
        assert load(dump(ruleset), ruleset.family) == ruleset


@pytest.mark.parametrize("name", CASES)
def test_matches_stand_in_the_order_in_which_they_are_saved(name: str) -> None:
    for ruleset in plan_of(name).rulesets:
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    kinds = [type(match) for match in rule.matches]
                    header = [kind for kind in kinds if kind in HEADER_ORDER]
                    assert kinds[: len(header)] == sorted(header, key=HEADER_ORDER.index)
                    assert rule.ours


@pytest.mark.parametrize("name", CASES)
def test_every_jump_has_its_chain_and_every_chain_is_a_known_one(name: str) -> None:
    for ruleset in plan_of(name).rulesets:
        for table in ruleset.tables:
            names = {chain.name for chain in table.chains}
            assert {chain.name for chain in table.chains if chain.policy is None} <= OWN_CHAINS
            targets = (rule.target for chain in table.chains for rule in chain.rules)
            assert {target.chain for target in targets if isinstance(target, Jump)} <= names


def test_every_option_that_shapes_the_plan_has_a_case() -> None:
    """A flag whose value changes nothing in any case is either not used or not tested."""
    of_the_run = {
        "iptables_probe_port", "probe_timeout", "ip_family", "dry_run", "network_namespace", "reconcile", "force_apply",
        "cleanup_only", "skip_rule_apply", "run_validation", "cni_mode", "wait", "force_iptables_binary",
        "native_nftables", "iptables_engine", "dual_stack", "log_output_level", "log_as_json", "log_target",
        "log_caller", "log_stacktrace_level", "capture_backend", "strict_env",
    }  # fmt: skip
    arguments = {field for name in CASES for field in parse_argv(argv(name)) or {}}
    assert {option.field for option in OPTIONS} - of_the_run == arguments


def test_routing_goes_with_tproxy_and_ipv6() -> None:
    assert plan_of("article").routing == ()
    assert [type(entry) for entry in plan_of("article-ipv6").routing] == [Address]
    both = plan_of("tproxy-mark-and-table").routing
    assert PolicyRule(IPV4, 0x111, 7) in both
    assert Route(IPV6, "lo", 7) in both
    assert len(both) == 5
    assert plan_of("tproxy-without-inbound").routing == ()


def test_the_article_has_nine_output_rules() -> None:
    nat = plan_of("article-1.13").rulesets[0].table("nat")
    assert nat is not None
    output = nat.chain("ISTIO_OUTPUT")
    assert output is not None
    assert len(output.rules) == 9
