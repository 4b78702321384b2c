"""A table that is known at a glance to be just what was written: when it is, and that nothing else passes for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from istio_init.kernel.xtables.decode_table import is_exactly
from istio_init.kernel.xtables.encode_rule import HOOKS, INFO
from istio_init.kernel.xtables.pack_chain import pack_chain
from istio_init.kernel.xtables.unpack_table import unpack_table
from istio_init.model.rules import (
    FAMILIES,
    Chain,
    DestinationPorts,
    Jump,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Run,
    Table,
    Verdict,
    jumps,
    ordered,
)
from tests.kit.strategies import tables
from tests.kit.xtables_blob import Blob

if TYPE_CHECKING:
    from istio_init.kernel.xtables.decode_table import Expected
    from istio_init.model.rules import Family, TableName

NAMES: tuple[TableName, ...] = ("raw", "mangle", "nat")
TABLES = st.sampled_from(FAMILIES).flatmap(
    lambda family: st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(family), tables(family, name)))
)


def signed(table: Table) -> Table:
    """The table with all its rules ours."""
    return table.replace(
        chains=tuple(
            chain.replace(rules=tuple(rule.replace(ours=True) for rule in chain.rules)) for chain in table.chains
        )
    )


def expecting(table: Table, family: Family) -> Expected:
    return {chain.name: (chain, pack_chain(chain, family)) for chain in table.chains}


def content(table: Table) -> list[tuple[Chain, list[bool]]]:
    """All that can be told of a table, the signatures of its rules with it."""
    return [(chain, [rule.ours for rule in chain.rules]) for chain in table.chains]


def with_rules(table: Table, name: str, rules: tuple[Rule, ...]) -> Table:
    chains = {chain.name: chain for chain in table.chains}
    chains[name] = chains[name].replace(rules=rules)
    return Table(table.name, ordered(table.name, chains))


@given(TABLES)
def test_what_is_wanted_stands_whatever_it_has_counted(drawn: tuple[Family, Table]) -> None:
    family, table = drawn
    signed_table = signed(table)
    assert is_exactly(signed_table, family, Blob(signed_table, family).answers, expecting(signed_table, family))


CHANGES = ("policy", "signature", "less", "more", "another", "moved", "chain more", "chain less", "chain renamed")


@st.composite
def changed(draw: st.DrawFn, desired: Table) -> Table:
    """The table with one thing other than it was."""
    chain = draw(st.sampled_from(desired.chains))
    at = draw(st.integers(0, max(len(chain.rules) - 1, 0)))
    rules, rule = list(chain.rules), Rule((), Verdict("DROP"), ours=True)
    others = {each.name: each for each in desired.chains if each is not chain}
    reached = {name for each in desired.chains for name in jumps(each)}
    match draw(st.sampled_from(CHANGES)):
        case "policy":
            assume(chain.policy is not None)
            others[chain.name] = chain.replace(policy="DROP" if chain.policy == "ACCEPT" else "ACCEPT")
            return Table(desired.name, ordered(desired.name, others))
        case "chain more":
            return Table(desired.name, ordered(desired.name, {**others, chain.name: chain, "MORE": Chain("MORE", ())}))
        case "chain less" | "chain renamed" as change:
            assume(chain.policy is None and chain.name not in reached)
            renamed = {"RENAMED": chain.replace(name="RENAMED")} if change == "chain renamed" else {}
            return Table(desired.name, ordered(desired.name, {**others, **renamed}))
        case "more":
            rules.insert(at, rule)
        case change:
            assume(rules)
            taken = rules.pop(at)
            if change == "signature":
                rules.insert(at, taken.replace(ours=False))
            elif change == "another":
                rules.insert(at, rule)
            elif change == "moved":
                assume(not isinstance(taken.target, Jump))
                desired = with_rules(desired, chain.name, tuple(rules))
                target = draw(st.sampled_from(desired.chains))
                place = draw(st.integers(0, len(target.rules)))
                return with_rules(desired, target.name, (*target.rules[:place], taken, *target.rules[place:]))
    return with_rules(desired, chain.name, tuple(rules))


@given(TABLES, st.data())
def test_nothing_else_passes_for_it(drawn: tuple[Family, Table], data: st.DataObject) -> None:
    family, table = drawn
    signed_table = signed(table)
    other = data.draw(changed(signed_table))
    answers = Blob(other, family).answers
    assert is_exactly(signed_table, family, answers, expecting(signed_table, family)) == (
        content(other) == content(signed_table)
    )
    assert content(unpack_table(signed_table.name, family, answers, expecting(signed_table, family))) == content(other)


def output(*rules: Rule, name: str = "ISTIO_OUTPUT") -> Table:
    chains = {chain: Chain(chain, ()) for chain in ("ISTIO_INBOUND", "ISTIO_REDIRECT")}
    return Table("nat", ordered("nat", {**chains, name: Chain(name, rules)}))


TCP_PORT = Protocol(6), DestinationPorts(PortRange(1, 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (Rule((), Verdict("RETURN")), Rule((), Verdict("ACCEPT"))),
        (Rule((), Verdict("RETURN")), Rule((), Jump("ISTIO_REDIRECT"))),
        (Rule((), Jump("ISTIO_INBOUND")), Rule((), Jump("ISTIO_REDIRECT"))),
        (Rule((Protocol(6),), Redirect(PortRange(1, 1))), Rule((Protocol(6),), Redirect(PortRange(2, 2)))),
        (Rule((Protocol(6),), Redirect(PortRange(1, 1))), Rule((Protocol(17),), Redirect(PortRange(1, 1)))),
        (Rule(TCP_PORT, Verdict("RETURN")), Rule(TCP_PORT, Verdict("ACCEPT"))),
        (
            Rule(TCP_PORT, Verdict("RETURN")),
            Rule((Protocol(6), DestinationPorts(PortRange(1, 2))), Verdict("RETURN")),
        ),
        (
            Rule(TCP_PORT, Redirect(PortRange(1, 1))),
            Rule((Protocol(6), DestinationPorts(PortRange(1, 2))), Redirect(PortRange(1, 1))),
        ),
    ],
)
def test_a_rule_that_differs_in_one_thing_is_another(family: Family, rule: Rule, other: Rule) -> None:
    for one, two in ((rule, other), (other, rule)):
        signed_table = signed(output(one))
        expected = expecting(signed_table, family)
        assert is_exactly(signed_table, family, Blob(signed_table, family).answers, expected)
        assert not is_exactly(signed_table, family, Blob(signed(output(two)), family).answers, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_of_another_name_is_another(family: Family) -> None:
    desired = output()
    assert not is_exactly(
        desired, family, Blob(output(name="ISTIO_OUTPUU"), family).answers, expecting(desired, family)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(2 * len(HOOKS)))
def test_a_built_in_chain_that_begins_or_ends_elsewhere_is_another(family: Family, number: int) -> None:
    """As the kernel says where that is, it is believed."""
    desired = Table("mangle", ordered("mangle", {}))
    info, entries = Blob(desired, family).answers
    name, valid, *numbers = INFO.unpack(info)
    assert is_exactly(desired, family, (info, entries), expecting(desired, family))
    numbers[number] += 8
    assert not is_exactly(desired, family, (INFO.pack(name, valid, *numbers), entries), expecting(desired, family))


def test_a_table_of_which_not_all_is_expected_is_read() -> None:
    desired = Table("raw", ordered("raw", {}))
    expected = expecting(desired, "ipv4")
    assert is_exactly(desired, "ipv4", Blob(desired, "ipv4").answers, expected)
    assert not is_exactly(desired, "ipv4", Blob(desired, "ipv4").answers, {"OUTPUT": expected["OUTPUT"]})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [3, 600])
def test_a_long_run_matches_as_one(family: Family, count: int) -> None:
    def run(*values: int) -> Chain:
        ports = tuple(PortRange(value, value) for value in values)
        unit = Rule((Protocol(6), DestinationPorts(ports[0])), Verdict("RETURN"), ours=True)
        return Chain.of("ISTIO_OUTPUT", (Run((unit,), ports), unit))

    desired = Table("nat", ordered("nat", {"ISTIO_OUTPUT": run(*range(count))}))
    expected = expecting(desired, family)
    assert is_exactly(desired, family, Blob(desired, family).answers, expected)
    for values in (range(1, count + 1), range(count - 1), range(count + 1), (*range(count - 1), 9999)):
        other = Table("nat", ordered("nat", {"ISTIO_OUTPUT": run(*values)}))
        assert not is_exactly(desired, family, Blob(other, family).answers, expected)
