"""The strategies leave no kind out: what they make is what every property is held against."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.model import extensions, rules, unknown
from istio_init.model.rules import Jump, Network, PortRange, Rule, Ruleset, Table
from istio_init.record import Record
from tests.kit.strategies import MATCHES, TARGETS, chain_names, families, rulesets

if TYPE_CHECKING:
    from istio_init.model.rules import Family

NOUNS = {Record, Network, PortRange, Rule, rules.Run, rules.Chain, Table, Ruleset}


def alias(name: str) -> set[str]:
    """The names in one of netfilter's type aliases, which exist for the type checker alone."""
    nodes = ast.walk(ast.parse(inspect.getsource(rules)))
    aliases = [node for node in nodes if isinstance(node, ast.AnnAssign) and node.value]
    [value] = [node.value for node in aliases if isinstance(node.target, ast.Name) and node.target.id == name]
    assert value
    return {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}


def test_every_kind_has_a_strategy() -> None:
    modules = (rules, extensions, unknown)
    members = [each for module in modules for each in inspect.getmembers(module, inspect.isclass)]
    kinds = {kind for _, kind in members if issubclass(kind, Record)}
    assert kinds - NOUNS == {*MATCHES, *TARGETS}
    assert {kind.__name__ for kind in MATCHES} == alias("Match")
    assert {kind.__name__ for kind in TARGETS} == alias("Target")


@pytest.mark.parametrize("kind", [*MATCHES, *TARGETS])
@given(family=families, data=st.data())
def test_a_strategy_makes_its_kind(kind: type, family: Family, data: st.DataObject) -> None:
    result = data.draw({**MATCHES, **TARGETS}[kind](family))
    assert type(result) is kind


@given(families.flatmap(rulesets))
def test_rulesets_are_whole(ruleset: Ruleset) -> None:
    for table in ruleset.tables:
        names = [chain.name for chain in table.chains]
        assert len(set(names)) == len(names)
        for chain in table.chains:
            assert (chain.policy is None) == (chain.name not in rules.BUILTIN_CHAINS[table.name])
            assert set(rules.jumps(chain)) <= set(names)
            assert all(rule.target.chain > chain.name for rule in chain.rules if isinstance(rule.target, Jump)) or (
                chain.policy
            )


@given(chain_names())
def test_chain_names_fit_the_kernel(name: str) -> None:
    assert 0 < len(name) <= 28
