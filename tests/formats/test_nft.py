"""Rulesets as nftables has them: laid out, spelled, read back, and meaning the same to every packet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init import plan
from istio_init.errors import InitError
from istio_init.formats.nft.as_rulesets import ruleset
from istio_init.formats.nft.layout import layout
from istio_init.formats.nft.listing import listing
from istio_init.kernel.netlink.nfnetlink import text, word
from istio_init.kernel.nft.expressions import VERDICTS, verdict
from istio_init.kernel.nft.native_decode import meaning, read_table
from istio_init.model.differences import differences
from istio_init.model.extensions import CtState, Multiport, SetMark, Tproxy
from istio_init.model.inet import (
    chain_name,
    iptables_name,
)
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    IPV6,
    DestinationPorts,
    InInterface,
    Jump,
    PortRange,
    Rule,
    Verdict,
)
from istio_init.model.unknown import Comment
from istio_init.planning.preview import dump_nftables
from tests.kit.nft_messages import dumped, read_back
from tests.kit.nft_tables import IS_TCP, RETURN, laid_out, nat, planned, to
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.model.rules import TableName


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
    owned = dump.replace(table=dump.table + word(2, 6))
    assert meaning(read_table("nat", owned).table) == nat_table


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
