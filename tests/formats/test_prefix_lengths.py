"""Long lists of networks: a rule and a hash table for each length that many of them have, one rule for all others."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from istio_init import plan
from istio_init.formats.nft.as_rulesets import ruleset
from istio_init.formats.nft.dump_reader import read_nft
from istio_init.formats.nft.layout import layout
from istio_init.formats.nft.listing import listing
from istio_init.formats.nft.merge import fold
from istio_init.formats.nft.prefix_lengths import MOST_LENGTHS
from istio_init.formats.nft.unfold import unfold
from istio_init.kernel.nft.native_decode import read_table
from istio_init.model.differences import equivalent
from istio_init.model.inet import LONGEST_IN_RULE, Addresses, InetRule, InetTable, interval, merged
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    Chain,
    Destination,
    InInterface,
    Network,
    Rule,
    Ruleset,
    Run,
    Source,
    Table,
    Verdict,
    ordered,
)
from tests.kit.nft_messages import dumped, read_back
from tests.kit.options import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.inet import Interval
    from istio_init.model.rules import Family

RETURN = Verdict("RETURN")


@st.composite
def long_lists(draw: st.DrawFn) -> tuple[Family, tuple[Network, ...]]:
    """More networks than a rule holds, of a few lengths or many, some of them twice, or within others."""
    family = draw(st.sampled_from(FAMILIES))
    bits = 32 if family == IPV4 else 128
    lengths = draw(st.lists(st.integers(1, bits), min_size=1, max_size=12))
    random = Random(draw(st.integers(0, 2**32)))
    # Within few addresses, or among all.
    fixed = draw(st.sampled_from([0, 8, bits - 10]))
    networks = []
    for _ in range(draw(st.integers(LONGEST_IN_RULE + 1, 600))):
        prefix = random.choice(lengths)
        number = random.getrandbits(bits - fixed) >> bits - prefix << bits - prefix
        networks.append(Network(number.to_bytes(bits // 8), prefix))
    return family, tuple(networks)


def run(networks: tuple[Network, ...]) -> Run:
    return Run((Rule((Destination(networks[0]),), RETURN, ours=True),), networks)


def table(family: Family, parts: Sequence[Run]) -> Ruleset:
    chain = Chain.of("ISTIO_OUTPUT", tuple(parts))
    return Ruleset(family, (Table("nat", ordered("nat", {"ISTIO_OUTPUT": chain})),))


def every_rule(ruleset: Ruleset) -> tuple[Rule, ...]:
    return tuple(rule for each in ruleset.tables for chain in each.chains for rule in chain.rules)


def addresses(rule: InetRule) -> Addresses:
    [match] = rule.matches
    assert isinstance(match, Addresses)
    return match


def spans(written: InetTable) -> tuple[Interval, ...]:
    """All addresses that the table's rules match."""
    every = [addresses(rule) for chain in written.chains for rule in chain.rules]
    own = [interval(Network(address, each.prefix)) for each in every for address in each.networks]
    return merged([*own, *(pair for each in every for pair in each.intervals)])


def matches(networks: Sequence[Network], address: int) -> bool:
    return any(low <= address <= high for low, high in map(interval, networks))


@given(long_lists(), st.data())
def test_the_same_packets_meet_the_rules(pair: tuple[Family, tuple[Network, ...]], data: st.DataObject) -> None:
    family, networks = pair
    folded = fold([run(networks)], family)
    again = [match.network for rule in folded.rules for each in unfold(rule, family) for match in each.matches]  # type: ignore[union-attr]
    spans = merged(map(interval, networks))
    assert merged(map(interval, again)) == spans
    low, high = data.draw(st.sampled_from(spans))
    for address in (low, high, low - 1, high + 1):
        assert matches(networks, address) == matches(again, address)


@given(long_lists())
def test_lengths_of_many_networks_have_a_rule_of_their_own(pair: tuple[Family, tuple[Network, ...]]) -> None:
    family, networks = pair
    counts: dict[int, int] = {}
    for network in dict.fromkeys(networks):
        counts[network.prefix] = counts.get(network.prefix, 0) + 1
    many = sorted((count for count in counts.values() if count > LONGEST_IN_RULE), reverse=True)
    result = [addresses(rule) for rule in fold([run(networks)], family).rules]
    own = [match for match in result if match.networks]
    assert sorted((len(match.networks) for match in own), reverse=True) == many[:MOST_LENGTHS]
    assert [match.prefix for match in own] == sorted({match.prefix for match in own}, reverse=True)
    assert all(counts[match.prefix] == len(match.networks) and not match.intervals for match in own)
    assert len(result) - len(own) == bool(set(counts) - {match.prefix for match in own})


@given(long_lists(), st.booleans())
def test_each_rule_knows_the_rules_it_was_made_of(pair: tuple[Family, tuple[Network, ...]], at_once: bool) -> None:
    """Whether they come as a run or one by one."""
    family, networks = pair
    parts = [run(networks)] if at_once else [*run(networks).rules()]
    folded = fold(parts, family)
    sources = [tuple(folded.sources(number)) for number in range(len(folded.rules))]
    assert sorted(map(repr, run(networks).rules())) == sorted(repr(each) for some in sources for each in some)
    for rule, some in zip(folded.rules, sources, strict=True):
        assert [rule] == [*fold(some, family).rules] or not addresses(rule).networks
    assert folded.rules == fold([run(networks)], family).rules


@given(long_lists())
def test_it_is_read_back_as_the_plan(pair: tuple[Family, tuple[Network, ...]]) -> None:
    desired = table(pair[0], [run(pair[1])])
    written = layout([desired], "nat")
    assert read_back(written) == written
    assert ruleset([read_back(written)], pair[0], desired) == desired
    # Without the plan, intervals are read as the fewest networks, of which another length may have many.
    again = layout([ruleset([read_back(written)], pair[0])], "nat")
    assert spans(again) == spans(written)


@given(long_lists())
def test_what_earlier_releases_wrote_is_the_plan_as_well(pair: tuple[Family, tuple[Network, ...]]) -> None:
    """One set of intervals: a run after an update finds everything in place."""
    family, networks = pair
    desired = table(family, [run(networks)])
    spans = Addresses("daddr", merged(map(interval, networks)))
    written = layout([desired], "nat")
    [chain] = written.chains
    earlier = written.replace(chains=(chain.replace(rules=(InetRule((spans,), RETURN, family),)),))
    read = ruleset([read_back(earlier)], family, desired)
    assert equivalent(every_rule(read), every_rule(desired))


@given(long_lists())
def test_the_listing_means_the_same(pair: tuple[Family, tuple[Network, ...]]) -> None:
    family, networks = pair
    desired = table(family, [run(networks)])
    written = layout([desired], "nat")
    read = read_nft(listing([written]))
    rules = [rule for some in read if some.family == family for each in some.tables[0].chains for rule in each.rules]
    again = [match.network for rule in rules for match in rule.matches]  # type: ignore[union-attr]
    assert merged(map(interval, again)) == merged(map(interval, networks))


def test_the_listing_is_nfts() -> None:
    many = ",".join(f"10.{n}.0.0/{(16, 24)[n % 2]}" for n in range(80))
    chosen = options(["-u", "1337", "-i", "*", "-x", f"{many},10.0.0.0/9", "--no-enable-ipv6"], {})
    assert chosen is not None
    text = listing([layout(plan(chosen).rulesets, "nat")])
    assert "\tset ipv4-2 {\n\t\ttype ipv4_addr\n\t\tsize 40\n\t\telements = { 10.0.0.0, 10.2.0.0,\n" in text
    lines = [line.strip() for line in text.splitlines() if "ip daddr" in line and "oifname" not in line]
    assert lines == [
        "ip daddr & 255.255.255.0 == @ipv4-1 counter packets 0 bytes 0 return",
        "ip daddr & 255.255.0.0 == @ipv4-2 counter packets 0 bytes 0 return",
        "ip daddr { 10.0.0.0/9, 127.0.0.1 } counter packets 0 bytes 0 return",
    ]


def test_a_list_that_must_not_match_is_read() -> None:
    """No plan has one; another program may, or a person."""
    firsts = frozenset(bytes((10, number, 0, 0)) for number in range(50))
    rule = InetRule((InInterface("a"), Addresses("saddr", (), True, firsts, 16)), RETURN, IPV4)
    written = layout([table(IPV4, [run((Network(b"\x0a\0\0\0", 8),))])], "nat")
    [chain] = written.chains
    changed = written.replace(chains=(chain.replace(rules=(rule,)),))
    assert read_back(changed) == changed
    assert 'iifname "a" ip saddr & 255.255.0.0 != @ipv4-1 counter' in listing([changed])
    [read] = unfold(rule, IPV4)
    assert [match.network for match in read.matches if isinstance(match, Source) and match.negated] == [
        Network(each, 16) for each in sorted(firsts)
    ]


def test_a_network_with_host_bits_in_the_set_is_not_guessed_at() -> None:
    """No packet's address is equal to it once its last bits are gone."""
    written = layout([table(IPV4, [run(tuple(Network(bytes((10, n, 0, 0)), 16) for n in range(50)))])], "nat")
    dump = dumped(written)
    [(name, lists)] = dump.elements.items()
    changed = {name: tuple(each.replace(b"\x0a\7\0\0", b"\x0a\7\0\1") for each in lists)}
    read: InetTable = read_table("nat", dump.replace(elements=changed)).table
    [rule] = read.chains[0].rules
    assert "[nftables: " in listing([read])
    assert not any(isinstance(match, Addresses) for match in rule.matches)
