"""Wanted against found: which rules are ours, what differs, and the edit that mends it."""

from __future__ import annotations

from itertools import groupby
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from istio_init.model.differences import Difference, differences
from istio_init.model.ownership import edit, own_part, own_rules, recognised
from istio_init.model.placement import merged
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    OWN_CHAINS,
    TCP,
    Chain,
    DestinationPorts,
    Jump,
    Owner,
    PortRange,
    Protocol,
    Rule,
    Ruleset,
    Table,
    Verdict,
    ordered,
)

RETURN = Rule((Protocol(TCP),), Verdict("RETURN"))
ACCEPT = Rule((), Verdict("ACCEPT"))
DROP = Rule((Owner("uid", 5, 5),), Verdict("DROP"))
TO_OURS = Rule((), Jump("ISTIO_OUTPUT"))
OURS = RETURN.replace(ours=True)


def nat(**chains: tuple[Rule, ...]) -> Table:
    """A nat table with these rules in its chains."""
    builtin = BUILTIN_CHAINS["nat"]
    named = {name: Chain(name, rules, "ACCEPT" if name in builtin else None) for name, rules in chains.items()}
    return Table("nat", ordered("nat", named))


def found_differences(desired: Table, table: Table) -> list[Difference]:
    return list(differences(Ruleset("ipv4", (desired,)), Ruleset("ipv4", (table,))))


# What a rule says doesn't matter here, only which are equal: few of them, so that they meet.
PLAIN = st.sampled_from((RETURN, ACCEPT, DROP, TO_OURS, Rule((), Jump("ISTIO_DROP")), Rule((), Jump("THEIRS"))))
OF_A_PLAN = PLAIN.filter(lambda rule: rule.target != Jump("THEIRS")).map(lambda rule: rule.replace(ours=True))
EXISTING = st.lists(PLAIN | OF_A_PLAN, max_size=5).map(tuple)
DESIRED = st.lists(OF_A_PLAN, max_size=4).map(tuple)
OWN = st.sampled_from(("ISTIO_OUTPUT", "ISTIO_DROP", "ISTIO_INBOUND"))


@st.composite
def situations(draw: st.DrawFn) -> tuple[Table, Table]:
    """A found nat table, and a wanted one as plans have it."""
    result = {name: Chain(name, draw(EXISTING)) for name in draw(st.sets(OWN | st.just("THEIRS")))}
    desired = {name: Chain(name, draw(DESIRED)) for name in draw(st.sets(OWN))}
    for name in BUILTIN_CHAINS["nat"]:
        result[name] = Chain(name, draw(EXISTING), draw(st.sampled_from(("ACCEPT", "DROP"))))
        rules = draw(DESIRED)
        desired[name] = Chain(name, rules, "ACCEPT", draw(st.integers(0, len(rules))))
    return Table("nat", ordered("nat", result)), Table("nat", ordered("nat", desired))


def others(table: Table, desired: Table | None) -> dict[str, list[Rule]]:
    """The rules that aren't ours, chain by chain, in order."""
    chains = [chain for chain in recognised(table, desired).chains if chain.name not in OWN_CHAINS]
    own = {chain.name: own_rules(chain) for chain in chains}
    return {
        chain.name: [rule for number, rule in enumerate(chain.rules) if number not in own[chain.name]]
        for chain in chains
    }


@given(situations())
def test_what_was_brought_to_the_plan_is_in_place(situation: tuple[Table, Table]) -> None:
    actual, desired = situation
    assert found_differences(desired, merged(actual, desired)) == []


@given(situations())
def test_bringing_it_there_twice_changes_nothing(situation: tuple[Table, Table]) -> None:
    actual, desired = situation
    once = merged(actual, desired)
    assert merged(once, desired) == once


@given(situations())
def test_others_rules_stay_in_their_order(situation: tuple[Table, Table]) -> None:
    actual, desired = situation
    before = others(actual, desired)
    assert others(merged(actual, desired), desired) == before
    assert others(merged(actual, None), None) == others(actual, None)


@given(situations())
def test_policies_and_others_chains_stay(situation: tuple[Table, Table]) -> None:
    actual, desired = situation
    for result in (merged(actual, desired), merged(actual, None)):
        before = {chain.name: chain.policy for chain in actual.chains if chain.name not in OWN_CHAINS}
        assert {chain.name: chain.policy for chain in result.chains if chain.name not in OWN_CHAINS} == before


@given(situations())
def test_nothing_of_ours_is_left_behind(situation: tuple[Table, Table]) -> None:
    actual, desired = situation
    assert own_part(merged(actual, None)) is None
    if own_part(actual, desired) is None:
        assert merged(merged(actual, desired), None) == actual


@given(situations())
def test_the_edit_makes_what_is_merged(situation: tuple[Table, Table]) -> None:
    actual, desired = situation
    result = merged(actual, desired)
    for chain in recognised(actual, desired).chains:
        if chain.name in OWN_CHAINS:
            continue
        change = edit(chain, desired.chain(chain.name))
        rules = list(chain.rules)
        for number in reversed(change.delete):
            del rules[number]
        rules[change.at : change.at] = change.block
        rules[0:0] = change.top
        assert result.chain(chain.name) == chain.replace(rules=tuple(rules))


@given(situations())
def test_rules_without_a_signature_count_where_they_equal_the_plans(situation: tuple[Table, Table]) -> None:
    _, desired = situation
    assume(any(chain.name in OWN_CHAINS for chain in desired.chains))  # as in every table of a plan
    unsigned = [c.replace(rules=tuple(rule.replace(ours=False) for rule in c.rules)) for c in desired.chains]
    assert found_differences(desired, Table(desired.name, tuple(unsigned))) == []


@pytest.mark.parametrize(
    ("chain", "own"),
    [
        (Chain("OUTPUT", (ACCEPT, TO_OURS, DROP), "ACCEPT"), (1,)),
        (Chain("OUTPUT", (ACCEPT, RETURN, DROP), "ACCEPT"), ()),
        (Chain("OUTPUT", (ACCEPT, OURS, DROP), "ACCEPT"), (1,)),
        (Chain("OUTPUT", (RETURN, OURS), "ACCEPT"), (1,)),
        (Chain("ISTIO_OUTPUT", (ACCEPT, DROP)), (0, 1)),
        (Chain("THEIRS", (ACCEPT, TO_OURS)), (1,)),
    ],
)
def test_which_rules_are_ours(chain: Chain, own: tuple[int, ...]) -> None:
    assert own_rules(chain) == own


@pytest.mark.parametrize(
    ("table", "own"),
    [
        # Nobody signed, but some program made Istio chains: an equal rule is Istio's, but a second one like it is not.
        (nat(OUTPUT=(DROP, RETURN, RETURN), ISTIO_OUTPUT=()), (1,)),
        # We have written this table, and signed: an equal rule without a signature is somebody else's,
        (nat(OUTPUT=(RETURN, TO_OURS.replace(ours=True)), ISTIO_OUTPUT=()), (1,)),
        (nat(OUTPUT=(RETURN, OURS), ISTIO_OUTPUT=()), (1,)),
        (nat(INPUT=(OURS,), OUTPUT=(RETURN,), ISTIO_OUTPUT=()), ()),
        # and so it is where no Istio rules found.
        (nat(OUTPUT=(RETURN,)), ()),
    ],
)
def test_which_rules_of_a_table_are_ours(table: Table, own: tuple[int, ...]) -> None:
    chain = recognised(table, nat(OUTPUT=(OURS, TO_OURS))).chain("OUTPUT")
    assert chain
    assert own_rules(chain) == own


def test_ours_go_where_our_first_one_stood() -> None:
    table = nat(OUTPUT=(ACCEPT, TO_OURS, DROP))
    desired = nat(OUTPUT=(OURS, TO_OURS), ISTIO_OUTPUT=())
    result = merged(table, desired).chain("OUTPUT")
    assert result
    assert result.rules == (ACCEPT, RETURN, TO_OURS, DROP)


def test_ours_go_to_the_end_of_a_chain_that_has_none_and_inserted_ones_to_the_front() -> None:
    desired = Table("nat", ordered("nat", {"OUTPUT": Chain("OUTPUT", (OURS, TO_OURS), "ACCEPT", inserted=1)}))
    result = merged(nat(OUTPUT=(ACCEPT, DROP)), desired).chain("OUTPUT")
    assert result
    assert result.rules == (RETURN, ACCEPT, DROP, TO_OURS)


@pytest.mark.parametrize(
    ("desired", "table", "difference"),
    [
        (nat(OUTPUT=(TO_OURS,)), nat(OUTPUT=(ACCEPT,)), Difference("missing", "nat", "")),
        (nat(), nat(OUTPUT=(ACCEPT,)), None),
        (
            nat(OUTPUT=(TO_OURS,), ISTIO_OUTPUT=(RETURN,)),
            nat(OUTPUT=(TO_OURS,)),
            Difference("missing", "nat", "ISTIO_OUTPUT"),
        ),
        (
            nat(ISTIO_OUTPUT=(RETURN, DROP)),
            nat(ISTIO_OUTPUT=(RETURN,)),
            Difference("missing", "nat", "ISTIO_OUTPUT", 2, DROP),
        ),
        (
            nat(ISTIO_OUTPUT=(RETURN,)),
            nat(ISTIO_OUTPUT=(RETURN, RETURN)),
            Difference("unexpected", "nat", "ISTIO_OUTPUT", 2, RETURN),
        ),
        (
            nat(ISTIO_OUTPUT=(RETURN, DROP, ACCEPT)),
            nat(ISTIO_OUTPUT=(RETURN, ACCEPT, DROP)),
            Difference("misplaced", "nat", "ISTIO_OUTPUT", 2, DROP),
        ),
        (
            nat(ISTIO_OUTPUT=(RETURN,)),
            nat(ISTIO_OUTPUT=(RETURN,), ISTIO_DROP=()),
            Difference("unexpected", "nat", "ISTIO_DROP"),
        ),
        (
            nat(ISTIO_OUTPUT=(RETURN,)),
            nat(ISTIO_OUTPUT=(RETURN,), THEIRS=(ACCEPT, OURS)),
            Difference("unexpected", "nat", "THEIRS", 1, OURS),
        ),
        (nat(OUTPUT=(TO_OURS,)), nat(INPUT=(DROP,), OUTPUT=(ACCEPT, TO_OURS, DROP), THEIRS=(DROP,)), None),
    ],
)
def test_difference(desired: Table, table: Table, difference: Difference | None) -> None:
    assert found_differences(desired, table) == ([difference] if difference else [])


def test_a_table_that_no_plan_wants_is_searched_for_ours() -> None:
    actual = Ruleset("ipv4", (nat(OUTPUT=(ACCEPT, TO_OURS)),))
    assert list(differences(Ruleset("ipv4", ()), actual)) == [Difference("unexpected", "nat", "OUTPUT", 1, TO_OURS)]


def test_a_policy_is_not_ours() -> None:
    desired = nat(OUTPUT=(TO_OURS,))
    closed = Table("nat", tuple(c.replace(policy="DROP") if c.policy else c for c in desired.chains))
    assert found_differences(desired, closed) == []


DOWN = st.sampled_from(
    [Rule((Protocol(TCP), DestinationPorts(PortRange(port, port))), Verdict("RETURN")) for port in (80, 443, 15020)]
    + [Rule((Protocol(TCP), DestinationPorts(PortRange(22, 22))), Jump("ISTIO_DROP")), DROP]
)


@given(st.lists(DOWN, max_size=6), st.randoms())
def test_the_order_of_adjacent_rules_with_one_target_is_no_difference(rules: list[Rule], chance: Random) -> None:
    shuffled: list[Rule] = []
    for _, run in groupby(rules, key=lambda rule: rule.target):
        same = list(run)
        chance.shuffle(same)
        shuffled += same
    desired, table = nat(ISTIO_INBOUND=tuple(rules)), nat(ISTIO_INBOUND=tuple(shuffled))
    assert found_differences(desired, table) == []


@given(st.permutations([RETURN, DROP, ACCEPT]))
def test_the_order_of_rules_with_different_targets_is_a_difference(rules: list[Rule]) -> None:
    assume(rules != [RETURN, DROP, ACCEPT])
    actual = found_differences(nat(ISTIO_INBOUND=(RETURN, DROP, ACCEPT)), nat(ISTIO_INBOUND=tuple(rules)))
    assert {each.kind for each in actual} == {"misplaced"}
