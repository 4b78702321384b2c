"""Rulesets as nftables has them: laid out, spelled, read back, and meaning the same to every packet."""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_init import plan
from istio_init.errors import InitError
from istio_init.formats.nft.layout import layout, ruleset
from istio_init.formats.nft.listing import listing
from istio_init.formats.nft.merge import fold, unfold
from istio_init.kernel.netlink.nfnetlink import text, word
from istio_init.kernel.nft.expressions import VERDICTS, verdict
from istio_init.kernel.nft.native_decode import meaning, read_table
from istio_init.model.differences import differences
from istio_init.model.extensions import CtState, Multiport, SetMark, Tproxy
from istio_init.model.inet import (
    LONGEST_IN_RULE,
    NAMES,
    Addresses,
    InetTable,
    Ports,
    chain_name,
    interval,
    iptables_name,
    merged,
    networks,
    prefix_length,
)
from istio_init.model.parsers import masked
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    IPV6,
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
    Redirect,
    Rule,
    Ruleset,
    Run,
    Source,
    SourcePorts,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import Comment
from istio_init.planning.preview import dump_nftables
from tests.kit.nft_messages import dumped, read_back
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.rules import Family, TableName, Target
    from istio_init.planning.plan import Plan

RETURN, DROP = Verdict("RETURN"), Verdict("DROP")
IS_TCP, IS_UDP = Protocol(TCP), Protocol(UDP)
spans = st.tuples(st.integers(0, 300), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def planned(*words: str) -> Plan:
    """The plan of a command line."""
    chosen = options(["-u", "1337", *words], {})
    assert chosen is not None
    return plan(chosen)


def laid_out(rulesets: Sequence[Ruleset]) -> tuple[InetTable, ...]:
    """All tables that hold something."""
    return tuple(each for name in NAMES if (each := layout(rulesets, name)).chains)


def nat(family: Family, chains: dict[str, tuple[Rule, ...]], name: TableName = "nat") -> Ruleset:
    """A ruleset of one table."""
    result = {
        each: Chain(each, rules, "ACCEPT" if each.isupper() and "_" not in each else None)
        for each, rules in chains.items()
    }
    return Ruleset(family, (Table(name, ordered(name, result)),))


def dport(number: int, last: int = 0, *, protocol: Protocol = IS_TCP, to: Target = RETURN) -> Rule:
    """A rule about a destination port, or a range of them."""
    return Rule((protocol, DestinationPorts(PortRange(number, last or number))), to)


def to(cidr: str, target: Target = RETURN) -> Rule:
    """A rule about a destination."""
    network = ipaddress.ip_network(cidr)
    return Rule((Destination(Network(network.network_address.packed, network.prefixlen)),), target)


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_back(name: str) -> None:
    """Each plan, laid out and read back, is the plan; and without knowing it, means the same once laid out again."""
    desired = plan(options(argv(name), {}) or pytest.fail(name))
    tables = laid_out(desired.rulesets)
    read = tuple(map(read_back, tables))
    assert read == tables
    for each in desired.rulesets:
        assert ruleset(read, each.family, each) == each
    bare = tuple(ruleset(read, family) for family in FAMILIES)
    assert laid_out(bare) == tables
    assert not any(each.tables for each in bare if desired.ruleset(each.family) is None)


def test_both_families_share_what_has_no_address() -> None:
    text = dump_nftables(
        planned("-i", "*", "-b", "*", "-d", "15020,15090,15021", "-x", "10.0.0.0/8,fd00::/8", "--enable-ipv6")
    )
    assert text == LISTING


LISTING = """\
# ip -6 addr add ::6/128 dev lo
table inet istio-proxy-nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		meta l4proto tcp COUNT jump istio-inbound
	}

	chain output {
		type nat hook output priority -100; policy accept;
		counter packets 0 bytes 0 jump istio-output
	}

	chain istio-inbound {
		tcp dport { 15008, 15020-15021, 15090 } COUNT return
		meta l4proto tcp COUNT jump istio-in-redirect
	}

	chain istio-in-redirect {
		meta l4proto tcp COUNT redirect to :15006
	}

	chain istio-output {
		oifname "lo" ip saddr 127.0.0.6 COUNT return
		oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 COUNT jump istio-in-redirect
		oifname "lo" ip6 saddr ::6 COUNT return
		oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 COUNT jump istio-in-redirect
		oifname "lo" meta skuid != 1337 COUNT return
		meta skuid 1337 COUNT return
		oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 COUNT jump istio-in-redirect
		oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 COUNT jump istio-in-redirect
		oifname "lo" meta skgid != 1337 COUNT return
		meta skgid 1337 COUNT return
		ip daddr { 10.0.0.0/8, 127.0.0.1 } COUNT return
		ip6 daddr { ::1, fd00::/8 } COUNT return
		counter packets 0 bytes 0 jump istio-redirect
	}

	chain istio-redirect {
		meta l4proto tcp COUNT redirect to :15001
	}
}
""".replace("COUNT", "counter packets 0 bytes 0")


def test_one_family_alone_sends_the_other_back() -> None:
    text = listing(laid_out(planned("-i", "*", "-b", "*").rulesets))
    assert text.count("meta nfproto ipv6 counter packets 0 bytes 0 return") == 2
    assert "ipv4" not in text


def test_a_rule_of_one_family_asks_for_it() -> None:
    """Only IPv6 has a DNS server: its jump is in a chain that both share."""
    servers = planned("-i", "*", "--redirect-dns", "--dns-servers", "fd00::10", "--enable-ipv6")
    text = listing(laid_out(servers.rulesets))
    assert "meta nfproto ipv6 counter packets 0 bytes 0 jump istio-output-dns" in text
    assert "ip6 daddr fd00::10 udp dport 53 counter packets 0 bytes 0 redirect to :15053" in text


def test_tproxy_drops_what_nobody_listens_for() -> None:
    [mangle, _] = laid_out(planned("-m", "TPROXY", "-b", "*").rulesets)
    lines = listing([mangle]).splitlines()
    [at] = [number for number, line in enumerate(lines) if "tproxy ip to :15006" in line]
    assert lines[at + 1] == "\t\tip daddr != 127.0.0.1 meta l4proto tcp counter packets 0 bytes 0 drop"


def test_tproxy_without_its_drop_is_not_ours() -> None:
    """As Istio's own nftables mode writes it."""
    desired = planned("-m", "TPROXY", "-b", "*")
    [mangle, _] = laid_out(desired.rulesets)
    dump = dumped(mangle)
    kept = [rule for rule in dump.rules if verdict(VERDICTS["DROP"]) not in rule]
    assert len(kept) == len(dump.rules) - 1
    read = meaning(read_table("mangle", dump.replace(rules=tuple(kept))).table)
    actual = ruleset([read], IPV4, desired.rulesets[0])
    kinds = [(each.kind, each.chain) for each in differences(desired.rulesets[0], actual) if each.table == "mangle"]
    assert kinds == [("missing", "ISTIO_TPROXY"), ("unexpected", "ISTIO_TPROXY")]
    # It is kept as it is, to be put back after a failure.
    again = dumped(layout([actual], "mangle"))
    assert [rule for rule in again.rules if b"tproxy" in rule] == [rule for rule in kept if b"tproxy" in rule]


def hooked_elsewhere(chains: tuple[bytes, ...], old: bytes, new: bytes) -> tuple[bytes, ...]:
    """The chains of a dump, a fact of output's hook changed."""
    changed = tuple(chain.replace(old, new) if b"output\0" in chain else chain for chain in chains)
    assert changed != chains
    return changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Istio's own nftables mode gives mangle's output chain the type filter, which looks for no new route.
        (text(7, "route"), text(7, "filter")),
        (word(5, 1), word(5, 0)),
        (word(2, -150), word(2, -151)),
        (word(1, 3), word(1, 1)),
    ],
)
def test_a_base_chain_hooked_in_elsewhere_is_not_ours(old: bytes, new: bytes) -> None:
    desired = planned("-m", "TPROXY", "-b", "*").rulesets[0]
    [mangle, _] = laid_out([desired])
    dump = dumped(mangle)
    dump = dump.replace(chains=hooked_elsewhere(dump.chains, old, new))
    read = meaning(read_table("mangle", dump).table)
    actual = {each.chain for each in differences(desired, ruleset([read], IPV4, desired)) if each.table == "mangle"}
    assert {"OUTPUT", "output"} <= actual


def test_a_table_that_is_switched_off_has_no_base_chains() -> None:
    [nat_table] = laid_out(planned("-i", "*", "-b", "*").rulesets)
    dump = dumped(nat_table)
    read = read_table("nat", dump.replace(table=dump.table + word(2, 1))).table
    assert {"output", "prerouting"} <= {chain.name for chain in read.chains}


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


@pytest.mark.parametrize(
    ("rule", "name", "message"),
    [
        (Rule((Comment("why"), IS_TCP), RETURN), "nat", "a comment before other matches"),
        (Rule((Comment("é" * 65),), RETURN), "nat", "more than 128 bytes"),
        (Rule((Comment('"a"'),), RETURN), "nat", "with quotation marks"),
        (Rule((CtState(("NEW",), negated=True),), RETURN), "nat", "the connection's state"),
        (Rule((IS_TCP, Multiport("ports", (PortRange(1, 1), PortRange(3, 3)))), RETURN), "nat", "either side's port"),
        (Rule((DestinationPorts(PortRange(1, 1)),), RETURN), "nat", "without a protocol"),
        (Rule((), SetMark(1, 2)), "mangle", "only whole marks"),
        (Rule((), Tproxy(1, b"\1\2\3\4", 5)), "mangle", "only the packet's own address"),
        (Rule((), Verdict("QUEUE")), "nat", "QUEUE"),
        (to("fd00::/8"), "nat", "not one of ipv4"),
        # nft reads \* as the character, not as a backslash and anything.
        (Rule((InInterface("\\+"),), RETURN), "nat", r"'-i \\\\\+': an interface's name with a backslash before"),
        (Rule((InInterface("a\\*"),), RETURN), "nat", "a backslash before its last"),
    ],
)
def test_what_has_no_form_is_said(rule: Rule, name: TableName, message: str) -> None:
    with pytest.raises(InitError, match=message) as caught:
        dumped(layout([nat(IPV4, {"OUTPUT": (rule,)}, name)], name))
    assert str(caught.value).startswith("--native-nftables: ")
    assert "\n" not in str(caught.value)


def test_a_hook_without_a_base_chain_is_said() -> None:
    with pytest.raises(InitError, match="nat 'INPUT': no base chain"):
        layout([nat(IPV4, {"INPUT": (Rule((), RETURN),)})], "nat")


def test_names_go_both_ways() -> None:
    for name in ("ISTIO_OUTPUT_DNS", "ISTIO_IN_REDIRECT", "PREROUTING", "other_Chain"):
        assert iptables_name(chain_name(name)) == name
    assert chain_name("ISTIO_OUTPUT_DNS") == "istio-output-dns"


def test_a_chain_of_one_family_is_not_the_others() -> None:
    both = [
        nat(IPV4, {"OUTPUT": (Rule((), Jump("ISTIO_OUTPUT")),), "ISTIO_OUTPUT": (Rule((), RETURN),)}),
        nat(IPV6, {"OUTPUT": (Rule((), RETURN),)}),
    ]
    read = [read_back(each) for each in laid_out(both)]
    assert [ruleset(read, family) for family in FAMILIES] == both


def test_addresses_that_are_no_network_are_a_range() -> None:
    folded = fold([to("10.0.0.0/24"), to("10.0.1.0/25")], IPV4).rules
    assert folded[0].matches == (Addresses("daddr", ((0x0A000000, 0x0A00017F),)),)
    assert "ip daddr 10.0.0.0-10.0.1.127 counter" in listing(
        laid_out([nat(IPV4, {"OUTPUT": (to("10.0.0.0/24"), to("10.0.1.0/25"))})])
    )
    assert [str(each) for each in unfold(folded[0], IPV4)] == [
        str(each.replace(ours=True)) for each in (to("10.0.0.0/24"), to("10.0.1.0/25"))
    ]
