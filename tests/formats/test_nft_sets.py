"""Rules that differ in one value become one with a set: what folds, what stays apart, and no packet's way changes."""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_init.formats.nft.listing import listing
from istio_init.formats.nft.merge import fold
from istio_init.formats.nft.unfold import unfold
from istio_init.model.inet import (
    LONGEST_IN_RULE,
    Addresses,
    Ports,
    interval,
    merged,
    networks,
    prefix_length,
)
from istio_init.model.parsers import masked
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Run,
    Source,
    SourcePorts,
)
from tests.kit.nft_messages import read_back
from tests.kit.nft_tables import DROP, IS_TCP, IS_UDP, RETURN, dport, laid_out, nat, planned, to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.rules import Family, Target

spans = st.tuples(st.integers(0, 300), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@pytest.mark.parametrize(
    "rules",
    [
        (dport(80), dport(443)),
        (dport(80), dport(80), dport(79, 81)),
        (dport(80), dport(80, protocol=IS_UDP), dport(443), dport(443, protocol=IS_UDP)),
        (to("10.0.0.0/9"), to("10.128.0.0/9"), to("10.1.0.0/16")),
        (
            Rule((Source(Network(b"\x0a\0\0\0", 8)), IS_TCP), RETURN),
            Rule((Source(Network(b"\x0b\0\0\0", 8)), IS_TCP), RETURN),
        ),
    ],
)
def test_rules_that_differ_in_one_value_become_one_with_a_set(rules: tuple[Rule, ...]) -> None:
    folded = fold(rules, IPV4)
    assert len(folded.rules) == len({rule.matches[0] for rule in rules if isinstance(rule.matches[0], Protocol)} or {1})
    assert sorted(map(repr, rules)) == sorted(
        repr(rule) for number in range(len(folded.rules)) for rule in folded.sources(number)
    )


@pytest.mark.parametrize(
    "rules",
    [
        # In between is one that decides otherwise over a packet of both.
        (dport(80, 90), dport(85, 95, to=DROP), dport(89)),
        (to("10.0.0.0/8"), Rule((), DROP), to("11.0.0.0/8")),
        # They differ in more than one value, or in one that has no set.
        (dport(80), dport(443, to=DROP)),
        (dport(80), Rule((*to("10.0.0.0/8").matches, IS_TCP, DestinationPorts(PortRange(443, 443))), RETURN)),
        (Rule((InInterface("a"),), RETURN), Rule((InInterface("b"),), RETURN)),
        (Rule((IS_TCP, SourcePorts(PortRange(1, 1))), RETURN), dport(1)),
        (
            dport(80),
            Rule((IS_TCP, DestinationPorts(PortRange(443, 443), negated=True)), RETURN),
        ),
        (
            Rule((IS_TCP, SourcePorts(PortRange(1, 1)), DestinationPorts(PortRange(1, 1))), RETURN),
            Rule((IS_TCP, SourcePorts(PortRange(2, 2)), DestinationPorts(PortRange(2, 2))), RETURN),
        ),
    ],
)
def test_others_stay_apart(rules: tuple[Rule, ...]) -> None:
    assert len(fold(rules, IPV4).rules) == len(rules)


def test_a_list_that_turns_to_another_side_ends() -> None:
    """The third differs from the second in its source port alone, but the set is of destination ports."""
    pair = [
        Rule((IS_TCP, SourcePorts(PortRange(source, source)), DestinationPorts(PortRange(port, port))), RETURN)
        for source, port in ((1, 1), (1, 5), (2, 5))
    ]
    folded = fold(pair, IPV4).rules
    assert [rule.matches for rule in folded] == [
        (Ports(TCP, "sport", ((1, 1),)), Ports(TCP, "dport", ((1, 1), (5, 5)))),
        (Ports(TCP, "sport", ((2, 2),)), Ports(TCP, "dport", ((5, 5),))),
    ]


choices = st.sampled_from([RETURN, DROP, Redirect(PortRange(1, 1)), Jump("ISTIO_REDIRECT")])
random_rules = st.lists(
    st.one_of(
        st.builds(
            lambda span, protocol, target: Rule((protocol, DestinationPorts(PortRange(*span))), target),
            spans,
            st.sampled_from([IS_TCP, IS_UDP]),
            choices,
        ),
        st.builds(
            lambda low, bits, target: Rule(
                (Destination(Network((low >> bits << bits).to_bytes(4, "big"), 32 - bits)),), target
            ),
            st.integers(0, 31),
            st.integers(0, 4),
            choices,
        ),
        st.builds(lambda target: Rule((IS_TCP,), target), choices),
    ),
    max_size=12,
)


def first(rules: Sequence[Rule], protocol: int, port: int, address: int) -> Target | None:
    """The target of the first rule that a packet meets."""
    for rule in rules:
        for match in rule.matches:
            if isinstance(match, Protocol) and match.number != protocol:
                break
            if isinstance(match, DestinationPorts) and not match.ports.low <= port <= match.ports.high:
                break
            if isinstance(match, Destination):
                low, high = interval(match.network)
                if not low <= address <= high:
                    break
        else:
            return rule.target
    return None


@given(random_rules, st.sampled_from([TCP, UDP]), st.integers(0, 320), st.integers(0, 40))
@example(
    [
        *(dport(0), dport(0), dport(0, protocol=IS_UDP, to=DROP), dport(1, 2, protocol=IS_UDP)),
        *(dport(2, protocol=IS_UDP, to=DROP), dport(0, protocol=IS_UDP, to=DROP)),
    ],
    *(UDP, 0, 0),
)
def test_folding_changes_no_packets_way(rules: list[Rule], protocol: int, port: int, address: int) -> None:
    folded = fold(rules, IPV4)
    again = [each for rule in folded.rules for each in unfold(rule, IPV4)]
    assert first(again, protocol, port, address) == first(rules, protocol, port, address)
    assert fold(again, IPV4).rules == folded.rules


def port_run(span: list[tuple[int, int]], protocols: list[Protocol], targets: list[Target]) -> Run:
    values = tuple(PortRange(*each) for each in span)
    unit = zip(protocols, targets, strict=False)
    return Run(tuple(Rule((each, DestinationPorts(values[0])), to) for each, to in unit), values)


def network_run(places: list[tuple[int, int]], to: Target) -> Run:
    values = tuple(Network((low >> bits << bits).to_bytes(4, "big"), 32 - bits) for low, bits in places)
    return Run((Rule((Destination(values[0]),), to),), values)


some_runs = st.one_of(
    st.builds(
        port_run,
        st.lists(spans, min_size=1, max_size=5),
        st.permutations([IS_TCP, IS_UDP]),
        st.lists(choices, min_size=1, max_size=2),
    ),
    st.builds(network_run, st.lists(st.tuples(st.integers(0, 31), st.integers(0, 4)), min_size=1, max_size=5), choices),
)


@given(st.lists(st.one_of(random_rules, st.builds(lambda run: [run], some_runs)), max_size=5))
def test_runs_are_folded_as_their_rules_are(lists: list[list[Rule | Run]]) -> None:
    parts = [part for each in lists for part in each]
    rules = [rule for part in parts for rule in (part.rules() if isinstance(part, Run) else [part])]
    as_runs, one_by_one = fold(parts, IPV4), fold(rules, IPV4)
    assert as_runs.rules == one_by_one.rules
    for number in range(len(as_runs.rules)):
        assert list(as_runs.sources(number)) == list(one_by_one.sources(number))


@given(st.lists(spans))
def test_merged_intervals_are_the_same_numbers_apart(intervals: list[tuple[int, int]]) -> None:
    actual = merged(intervals)
    assert {n for low, high in actual for n in range(low, high + 1)} == {
        n for low, high in intervals for n in range(low, high + 1)
    }
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(actual))


@given(st.sampled_from(FAMILIES), st.data())
def test_networks_are_what_the_standard_library_says(family: Family, data: st.DataObject) -> None:
    kind = ipaddress.IPv4Address if family == IPV4 else ipaddress.IPv6Address
    highest = 2 ** (32 if family == IPV4 else 128) - 1
    low, high = sorted((data.draw(st.integers(0, highest)), data.draw(st.integers(0, highest))))
    desired = ipaddress.summarize_address_range(kind(low), kind(high))
    actual = networks((low, high), family)
    assert actual == tuple(Network(each.network_address.packed, each.prefixlen) for each in desired)
    assert merged(map(interval, actual)) == ((low, high),)


@given(st.sampled_from(FAMILIES), st.data())
def test_an_interval_has_a_prefix_length_where_it_is_one_network(family: Family, data: st.DataObject) -> None:
    bits = 32 if family == IPV4 else 128
    number = data.draw(st.integers(0, 2**bits - 1))
    prefix = data.draw(st.integers(0, bits))
    network = Network(masked(number.to_bytes(bits // 8, "big"), prefix), prefix)
    assert prefix_length(interval(network), family) == prefix
    low, high = sorted((number, data.draw(st.integers(max(0, number - 9), min(number + 9, 2**bits - 1)))))
    actual = networks((low, high), family)
    assert prefix_length((low, high), family) == (actual[0].prefix if len(actual) == 1 else None)


def test_a_long_list_has_a_set_of_its_own_which_all_its_rules_use() -> None:
    ports = ",".join(str(port) for port in range(1000, 1000 + 2 * LONGEST_IN_RULE + 2, 2))
    [mangle, _] = laid_out(planned("-m", "TPROXY", "-b", ports, "--enable-ipv6").rulesets)
    text = listing([mangle])
    assert text.count("\tset ports-1 {\n\t\ttype inet_service\n\t\tflags interval\n\t\telements = { 1000, 1002,") == 1
    assert text.count("tcp dport @ports-1 ") == 2
    assert read_back(mangle) == mangle


def test_the_number_of_rules_does_not_grow_with_the_lists() -> None:
    few, many = (
        [
            len(chain.rules)
            for each in laid_out(
                planned("-i", "*", "-b", "*", "-x", ",".join(cidrs[:count]), "-o", ",".join(ports[:count])).rulesets
            )
            for chain in each.chains
        ]
        for cidrs, ports, count in [(CIDRS, PORTS, 3), (CIDRS, PORTS, 1000)]
    )
    assert few == many


CIDRS = [f"10.{n // 100}.{n % 100}.7" for n in range(1000)]
PORTS = [str(2 * n + 1) for n in range(1000)]


def test_addresses_that_are_no_network_are_a_range() -> None:
    folded = fold([to("10.0.0.0/24"), to("10.0.1.0/25")], IPV4).rules
    assert folded[0].matches == (Addresses("daddr", ((0x0A000000, 0x0A00017F),)),)
    assert "ip daddr 10.0.0.0-10.0.1.127 counter" in listing(
        laid_out([nat(IPV4, {"OUTPUT": (to("10.0.0.0/24"), to("10.0.1.0/25"))})])
    )
    assert [str(each) for each in unfold(folded[0], IPV4)] == [
        str(each.replace(ours=True)) for each in (to("10.0.0.0/24"), to("10.0.1.0/25"))
    ]
