"""What applying a plan has to change, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init import plan
from istio_init.errors_rare import Drifted
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import FAMILIES, IPV4, IPV6, Jump, Network, Rule, Table, Verdict
from istio_init.planning.changes import Changes, NamespaceState, decide
from istio_init.planning.drift_text import MOST_SHOWN
from istio_init.planning.plan import Plan
from istio_init.planning.removal import removal
from tests.kit.memory import Memory
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.model.compare import TableChange
    from istio_init.model.rules import Family

REDIRECT, TPROXY, IPV4_ONLY = "article-ipv6", "article-tproxy", "article"
SIX = Address(Network(bytes(15) + b"\6", 128), "lo")
OTHERS = (
    PolicyRule(IPV4, 7, 77),
    Route(IPV4, "lo", 77),
    Route(IPV4, "eth0", 133),
    Address(Network(bytes(15) + b"\1", 128), "lo"),
)


def planned(name: str, *more: str) -> Plan:
    chosen = options([*argv(name), *more], {})
    assert chosen
    return plan(chosen)


def standing(*plans: Plan) -> Memory:
    memory = Memory()
    for each in plans:
        memory.hold(each)
    return memory


def names(changes: Changes) -> list[str]:
    return [f"{change.family} {change.name}" for change in changes.tables]


def without(memory: Memory, table: str, chain: str, number: int) -> None:
    """Take one rule, numbered from 1, out of a chain of IPv4's."""
    result = memory.tables[IPV4, table]  # type: ignore[index]
    chains = tuple(
        each.replace(rules=each.rules[: number - 1] + each.rules[number:]) if each.name == chain else each
        for each in result.chains
    )
    memory.tables[IPV4, table] = result.replace(chains=chains)  # type: ignore[index]


def test_from_nothing() -> None:
    """Routing first, then the tables that help, then nat, IPv4's at the very end."""
    desired = planned(TPROXY)
    changes = decide(desired, Memory().state())
    assert changes.why == "no Istio rules found"
    assert changes.add == desired.routing
    assert changes.drop == ()
    assert names(changes) == ["ipv6 raw", "ipv6 mangle", "ipv4 raw", "ipv4 mangle", "ipv6 nat", "ipv4 nat"]
    assert all(change.desired == change.unsigned for change in changes.tables)


@pytest.mark.parametrize("name", CASES)
def test_in_place_is_nothing_to_do(name: str) -> None:
    desired = planned(name)
    assert not decide(desired, standing(desired).state())
    assert not decide(desired, standing(desired).state(), reconcile=True)


@pytest.mark.parametrize("name", CASES)
def test_forced_it_is_everything(name: str) -> None:
    desired = planned(name)
    changes = decide(desired, standing(desired).state(), force=True)
    assert changes.why == "forced"
    assert sorted(names(changes)) == sorted(
        f"{rules.family} {t.name}" for rules in desired.rulesets for t in rules.tables
    )
    assert not changes.add
    assert not changes.drop


def test_forced_drift_is_drift() -> None:
    with pytest.raises(Drifted):
        decide(planned(TPROXY), standing(planned(REDIRECT)).state(), force=True)


def test_only_what_drifted_is_written() -> None:
    memory = standing(planned(TPROXY))
    without(memory, "mangle", "ISTIO_DIVERT", 1)
    with pytest.raises(
        Drifted, match=r"ipv4 mangle ISTIO_DIVERT rule 1 missing: -j MARK --set-xmark 0x539/0xffffffff$"
    ):
        decide(planned(TPROXY), memory.state())
    changes = decide(planned(TPROXY), memory.state(), reconcile=True)
    assert (changes.why, names(changes)) == ("reconciling", ["ipv4 mangle"])
    forced = decide(planned(TPROXY), memory.state(), reconcile=True, force=True)
    assert len(forced.tables) == 6


def test_a_message_names_every_difference_up_to_many() -> None:
    memory = standing(planned(TPROXY, "-o", ",".join(map(str, range(1, 101)))))
    memory.routing = ()
    with pytest.raises(Drifted) as caught:
        decide(planned(TPROXY), memory.state())
    message = str(caught.value)
    assert message.count("; ") == MOST_SHOWN
    assert message.endswith("more")
    assert "\n" not in message
    assert "--reconcile" in message
    assert "--cleanup-only" in message


def test_a_run_that_was_killed_is_completed() -> None:
    """Whole tables exist or don't, and nat, which comes last, has no Istio rules."""
    desired = planned(TPROXY)
    order = names(decide(desired, Memory().state()))
    for count in range(1, len(order)):
        memory = standing(desired)
        for name in order[count:]:
            family, table = name.split()
            del memory.tables[family, table]  # type: ignore[arg-type]
        changes = decide(desired, memory.state())
        assert changes.why == "completing an unfinished run"
        assert names(changes) == order[count:]


def test_what_no_run_of_ours_leaves_is_drift() -> None:
    desired = planned(TPROXY)
    half = standing(desired)
    del half.tables[IPV4, "nat"]
    without(half, "mangle", "ISTIO_INBOUND", 1)
    sealed = standing(desired)
    del sealed.tables[IPV4, "raw"]
    for memory in (half, sealed):
        with pytest.raises(Drifted):
            decide(desired, memory.state())


@pytest.mark.parametrize("family", FAMILIES)
def test_who_takes_over_is_written_before_who_lets_go(family: str) -> None:
    to = names(decide(planned(TPROXY), standing(planned(REDIRECT)).state(), reconcile=True))
    back = names(decide(planned(REDIRECT), standing(planned(TPROXY)).state(), reconcile=True))
    assert to.index(f"{family} mangle") < to.index(f"{family} nat")
    assert back.index(f"{family} nat") < back.index(f"{family} mangle")


def captures_inbound(table: Table | None) -> bool:
    chain = table.chain("PREROUTING") if table else None
    return chain is not None and any(rule.target == Jump("ISTIO_INBOUND") for rule in chain.rules)


@pytest.mark.parametrize("before", CASES)
def test_to_any_other_plan(before: str) -> None:
    """One write a table, inbound traffic captured at each step if it is before and after, the plan in the end."""
    old = planned(before, "--enable-ipv6")
    for after in CASES:
        new = planned(after, "--enable-ipv6")
        memory = standing(old)
        changes = decide(new, memory.state(), reconcile=True)
        assert len(set(names(changes))) == len(changes.tables)
        throughout = [family for family in FAMILIES if is_captured(old, family) and is_captured(new, family)]
        memory.router.replace(changes.add)
        for change in changes.tables:
            write(memory, change)
            for family in throughout:
                tables = (memory.tables.get((family, "nat")), memory.tables.get((family, "mangle")))
                assert any(map(captures_inbound, tables)), after
        memory.router.remove(changes.drop)
        assert not decide(new, memory.state(), reconcile=True), after
        assert set(memory.routing) == set(new.routing), after


def is_captured(plan: Plan, family: Family) -> bool:
    rules = plan.ruleset(family)
    # raw has a chain of that name, too, which only names zones.
    return rules is not None and any(captures_inbound(table) for table in rules.tables if table.name != "raw")


def write(memory: Memory, change: TableChange) -> None:
    if change.desired:
        memory.firewall.replace(change.family, change.desired)
    else:
        memory.firewall.remove(change.family, change.name)


def test_routing_of_other_options_goes_and_that_of_others_stays() -> None:
    memory = standing(planned("tproxy-mark-and-table"))
    memory.routing += OTHERS
    changes = decide(planned(TPROXY), memory.state(), reconcile=True)
    assert set(changes.drop) == {PolicyRule(f, 0x111, 7) for f in FAMILIES} | {Route(f, "lo", 7) for f in FAMILIES}
    assert set(changes.add) == set(planned(TPROXY).routing) - {SIX}


def test_routing_whose_rules_are_gone_is_known_by_the_options() -> None:
    """A run was cut short when it had taken the rules away. Two of the same mark and table in one: both families."""
    memory = Memory()
    memory.routing = (*planned(TPROXY).routing, *OTHERS)
    left = {PolicyRule(f, 1337, 133) for f in FAMILIES} | {Route(f, "lo", 133) for f in FAMILIES}
    assert set(decide(planned(REDIRECT), memory.state(), reconcile=True).drop) == left
    assert set(removal(memory.state(), planned("nothing")).drop) == {*left, SIX}
    other = planned("nothing", "-t", "5", "-r", "6")
    assert set(removal(memory.state(), other).drop) == {SIX}


def test_a_family_that_is_not_asked_for_is_left_alone() -> None:
    both = standing(planned(TPROXY))
    only = Memory()
    only.routing = both.routing
    only.tables = {key: table for key, table in both.tables.items() if key[0] == IPV4}
    contents = NamespaceState((only.firewall.read(IPV4),), only.routing)
    changes = decide(planned(IPV4_ONLY), contents, reconcile=True)
    assert all(change.family == IPV4 for change in changes.tables)
    assert set(changes.drop) == {PolicyRule(IPV4, 1337, 133), Route(IPV4, "lo", 133)}


@pytest.mark.parametrize("name", CASES)
def test_everything_is_removed_whatever_the_options(name: str) -> None:
    """With nat, which lets go first. The options of another plan, or of none, do as well."""
    memory = standing(planned(name))
    memory.routing += OTHERS
    for today in (name, "nothing", TPROXY):
        changes = removal(memory.state(), planned(today))
        assert set(changes.drop) == set(planned(name).routing) - set(OTHERS)
        assert {f"{f} {t}" for (f, t) in memory.tables} == set(names(changes))
        order = [change.name for change in changes.tables]
        assert order == sorted(order, key=lambda table: table != "nat")


def test_nothing_of_ours_is_nothing_to_remove() -> None:
    memory = Memory()
    memory.routing = (*OTHERS, PolicyRule(IPV4, 1337, 77))
    memory.tables[IPV6, "nat"] = Table("nat", ())
    assert not removal(memory.state(), planned(TPROXY))


def test_rules_without_a_signature_are_removed_with_the_options_that_made_them() -> None:
    desired = planned("exclude-interfaces")
    memory = standing(desired)
    for key, table in memory.tables.items():
        chains = (
            chain.replace(rules=tuple(rule.replace(ours=False) for rule in chain.rules)) for chain in table.chains
        )
        memory.tables[key] = table.replace(chains=tuple(chains))
    (with_them,) = removal(memory.state(), desired).tables
    assert with_them.unsigned == desired.rulesets[0].table("nat")
    (without_them,) = removal(memory.state(), planned("nothing")).tables
    memory.firewall.remove(IPV4, "nat", without_them.unsigned)
    bare = memory.tables[IPV4, "nat"].chain("PREROUTING")
    assert bare
    assert [rule.target for rule in bare.rules] == [Verdict("RETURN")] * 2
    assert Rule((), Jump("ISTIO_OUTPUT")) not in bare.rules
