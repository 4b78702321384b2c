"""Other programs' long lists in a proof: one rule with a set decides as all of the rules do."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from istio_init.model.foreign import HookedTable
from istio_init.model.packet import Facts, Packet
from istio_init.model.rules import (
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    PortRange,
    Protocol,
    Rule,
    Ruleset,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import UnknownTarget
from istio_init.simulate.semantics import matches
from istio_init.verify.foreign_lists import LEAST, MOST_RULES, shortened
from istio_init.verify.set_products import MOST_REGIONS

if TYPE_CHECKING:
    from istio_init.model.rules import Target

NETWORKS = tuple(
    Network(ip_address(address).packed, prefix)
    for address, prefix in (("10.0.0.0", 8), ("10.1.0.0", 16), ("10.1.1.5", 32), ("192.0.2.1", 32), ("2001:db8::", 32))
)
PORTS = (PortRange(53, 53), PortRange(80, 90), PortRange(443, 443))
FACTS = Facts(())
ADDRESSES = tuple(ip_address(each).packed for each in ("10.9.9.9", "10.1.1.4", "10.1.1.5", "192.0.2.1", "9.9.9.9"))

parts: dict[str, st.SearchStrategy[Any]] = {
    "source": st.builds(Source, st.sampled_from(NETWORKS), st.booleans()),
    "destination": st.builds(Destination, st.sampled_from(NETWORKS)),
    "sport": st.builds(SourcePorts, st.sampled_from(PORTS)),
    "dport": st.builds(DestinationPorts, st.sampled_from(PORTS), st.sampled_from((False, False, True))),
    "protocol": st.builds(Protocol, st.sampled_from((TCP, UDP, 132))),
    "interface": st.just(InInterface("eth0")),
}
targets: st.SearchStrategy[Target] = st.sampled_from(
    (Verdict("DROP"), Verdict("ACCEPT"), Jump("there", goto=True), Jump("there"))
)


@st.composite
def lists(draw: st.DrawFn) -> list[Rule]:
    """Runs of rules of one shape, with single rules between them."""
    rules = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=4, unique=True))
        target = draw(targets)
        count = draw(st.sampled_from((1, LEAST, LEAST + 4)))
        rules += [Rule(tuple(draw(parts[each]) for each in shape), target) for _ in range(count)]
    return rules


def ruleset_of(rules: list[Rule]) -> Ruleset:
    name: Any = "nftables ip other out"
    table = HookedTable(name, (Chain("OUTPUT", tuple(rules), "ACCEPT"),), "OUTPUT", 0, "filter")
    return Ruleset("ipv4", (table,))


def rules_of(ruleset: Ruleset) -> tuple[Rule, ...]:
    return ruleset.tables[0].chains[0].rules


def decided(rules: tuple[Rule, ...], packet: Packet) -> Target | None:
    """The target of the first rule that matches."""
    for rule in rules:
        held, _ = matches(rule.matches, packet, FACTS)
        assert held is not None
        if held:
            return rule.target
    return None


@given(lists(), st.integers(0, 1000))
def test_one_rule_with_a_set_decides_as_all_rules_do(rules: list[Rule], seed: int) -> None:
    short, _ = shortened(ruleset_of(rules))
    chosen = random.Random(seed)
    for _ in range(50):
        packet = Packet(
            "OUTPUT", chosen.choice((TCP, UDP)), chosen.choice(ADDRESSES), chosen.choice(ADDRESSES),
            chosen.choice((52, 53, 85, 443)), chosen.choice((52, 53, 85, 443)), chosen.choice(("eth0", "lo")),
        )  # fmt: skip
        assert decided(rules_of(short), packet) == decided(tuple(rules), packet)


def address(number: int) -> Network:
    return Network(ip_address(0x0A000000 + number * 3).packed, 32)


def test_a_list_is_one_rule_however_long_it_is() -> None:
    rules = [Rule((Protocol(TCP), Destination(address(n))), Verdict("DROP")) for n in range(5000)]
    short, sets = shortened(ruleset_of([*rules, Rule((), Verdict("ACCEPT"))]))
    assert len(rules_of(short)) == 2
    assert [len(each.members) for each in sets] == [5000]
    few = ruleset_of(rules[: LEAST - 1])
    assert shortened(few) == (few, ())


def test_beyond_the_bounds_a_list_is_undecided() -> None:
    def pairs(count: int) -> Ruleset:
        return ruleset_of(
            [
                Rule(
                    (Destination(address(n)), Protocol(TCP), DestinationPorts(PortRange(n + 1, n + 1))), Verdict("DROP")
                )
                for n in range(count)
            ]
        )

    def is_undecided(ruleset: Ruleset) -> bool:
        return any(isinstance(rule.target, UnknownTarget) for rule in rules_of(shortened(ruleset)[0]))

    several = ruleset_of([Rule((Destination(address(n)),), Jump(f"c{n}")) for n in range(MOST_RULES)])
    assert not is_undecided(several)
    assert shortened(several) == (several, ())
    assert len(rules_of(shortened(pairs(MOST_REGIONS // 2))[0])) == 1
    # What no set can hold in bounds stays rules, as long as these are few enough.
    assert rules_of(shortened(pairs(MOST_REGIONS + 8))[0]) == rules_of(pairs(MOST_REGIONS + 8))
    assert is_undecided(pairs(MOST_RULES + 1))
