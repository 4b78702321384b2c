"""The legacy tables by libiptc, against iptables itself: each reads what the other writes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.kit import raw_entries
from integration.kit.legacy_tables import EVERY, RETURN, marked, nat, reset, saved, table_of
from integration.kit.namespace import Namespace
from integration.kit.program import IPTABLES, NAMES, RESTORE, SAVE
from istio_init.formats.iptables_save import dump_table, rule_text
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.libiptc import Handle, functions
from istio_init.model.extensions import (
    CtZone,
    Mark,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.ownership import recognised
from istio_init.model.placement import merged
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    FAMILIES,
    IPV4,
    IPV6,
    OWN_CHAINS,
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Ruleset,
    Table,
    Verdict,
)
from istio_init.model.unknown import Comment
from tests.kit.strategies import rulesets, tables

if TYPE_CHECKING:
    from istio_init.model.rules import Family, TableName


def with_policies_accepting(table: Table) -> Table:
    chains = (chain.replace(policy="ACCEPT") if chain.policy else chain for chain in table.chains)
    return Table(table.name, tuple(chains))


# One reads what the other writes


@pytest.mark.parametrize("family", FAMILIES)
def test_what_restore_writes_is_read_as_the_same_values(namespace: Namespace, family: Family) -> None:
    @settings(max_examples=40, deadline=None)
    @given(rulesets(family))
    def check(ruleset: Ruleset) -> None:
        reset(namespace, family)
        namespace.run(RESTORE[family], text="".join(map(dump_table, ruleset.tables)))
        contents = namespace.inside(lambda: Libiptc().read(family))
        assert [table for table in contents.tables if ruleset.table(table.name)] == [*ruleset.tables]
        assert not any(rule.ours for table in contents.tables for chain in table.chains for rule in chain.rules)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_write_is_what_save_prints(namespace: Namespace, family: Family) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(EVERY).flatmap(lambda name: tables(family, name)))
    def check(drawn: Table) -> None:
        table = with_policies_accepting(drawn)
        reset(namespace, family)
        firewall = Libiptc()
        namespace.inside(lambda: firewall.replace(family, table))
        assert saved(namespace, family, table.name) == dump_table(table)
        result = namespace.inside(lambda: firewall.read(family, Ruleset(family, (table,)))).table(table.name)
        assert result == table
        assert all(rule.ours for chain in result.chains for rule in chain.rules if chain.name not in OWN_CHAINS)
        assert namespace.inside(lambda: Libiptc().read(family)).table(table.name) == result

    check()


def own_table(family: Family) -> st.SearchStrategy[Table]:
    """A table as a plan has it: users' chains are all ours, and some built-in chains have rules to insert."""
    some = st.sampled_from(EVERY).flatmap(lambda name: tables(family, name)).map(with_policies_accepting)
    ours = some.filter(lambda table: all(chain.policy or chain.name in OWN_CHAINS for chain in table.chains))
    return st.builds(
        lambda table, inserted: Table(
            table.name,
            tuple(c.replace(inserted=min(inserted, len(c.rules))) if c.policy else c for c in table.chains),
        ),
        ours,
        st.integers(0, 2),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_ours_is_merged_into_what_others_have(namespace: Namespace, family: Family) -> None:
    """Over any table of other programs (and Istio rules that a restore wrote), one plan, then another, then none."""

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        desired = data.draw(own_table(family))
        before = data.draw(tables(family, desired.name))
        after = data.draw(own_table(family).filter(lambda table: table.name == desired.name))
        reset(namespace, family)
        namespace.run(RESTORE[family], text=dump_table(before))

        def steps() -> None:
            firewall = Libiptc()
            there = firewall.read(family).table(before.name)
            assert there == before
            for plan in (desired, after):
                firewall.replace(family, plan)
                expected = merged(there, plan)
                there = firewall.read(family).table(before.name)
                assert there == expected
            firewall.remove(family, before.name, after)
            assert firewall.read(family).table(before.name) == merged(recognised(there, after), None)

        namespace.inside(steps)

    check()


# Tables that nobody needs


def existing(namespace: Namespace, family: Family) -> list[str]:
    return sorted(namespace.run("cat", NAMES[family]).split())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_written_comes_into_being(namespace: Namespace, family: Family) -> None:
    firewall = Libiptc()
    assert namespace.inside(lambda: firewall.read(family)) == Ruleset(family, ())

    def remove_everywhere() -> None:
        for name in BUILTIN_CHAINS:
            firewall.remove(family, name)

    namespace.inside(remove_everywhere)
    assert existing(namespace, family) == []
    namespace.inside(lambda: firewall.replace(family, nat(*marked(1))))
    namespace.inside(lambda: firewall.read(family, Ruleset(family, (table_of("mangle"),))))
    assert existing(namespace, family) == ["nat"]
    other = IPV6 if family == IPV4 else IPV4
    assert existing(namespace, other) == []


def test_where_nothing_is_ours_nothing_is_committed(namespace: Namespace) -> None:
    """A commit would show: the kernel takes the table's entries anew, and our handle's would fail."""
    namespace.run("iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-m", "mark", "--mark", "1", "-j", "RETURN")

    def check() -> None:
        with Handle(functions(IPV4), "nat") as other:
            Libiptc().remove(IPV4, "nat", table_of("nat", Chain("OUTPUT", marked(2), "ACCEPT")))
            other.append("INPUT", [pack(Rule((), RETURN), IPV4)])
            other.commit()

    namespace.inside(check)


# iptables finds our rules


ROWS: list[tuple[Family, TableName, str, Rule]] = [
    (
        IPV4,
        "nat",
        "OUTPUT",
        Rule((Protocol(TCP), DestinationPorts(PortRange(1, 2))), Redirect(PortRange(15001, 15001))),
    ),
    (IPV6, "nat", "OUTPUT", Rule((Protocol(TCP),), Redirect(PortRange(15001, 15001)))),
    (IPV4, "nat", "OUTPUT", Rule((OutInterface("lo"), Owner("uid", 1, 1, True), Comment("a b")), RETURN)),
    (IPV6, "mangle", "PREROUTING", Rule((InInterface("eth+"), Protocol(TCP)), Tproxy(15006, bytes(16), 1337))),
    (IPV4, "mangle", "PREROUTING", Rule((Protocol(TCP), Mark(1337)), SaveMark())),
    (IPV4, "mangle", "OUTPUT", Rule((Protocol(TCP),), RestoreMark())),
    (IPV4, "mangle", "OUTPUT", Rule((Destination(Network(bytes([127, 0, 0, 1]), 32), True),), SetMark(1338))),
    (IPV4, "raw", "OUTPUT", Rule((Protocol(UDP), DestinationPorts(PortRange(53, 53))), CtZone(1))),
]


@pytest.mark.parametrize(("family", "name", "chain", "rule"), ROWS, ids=[rule_text(row[-1]) for row in ROWS])
def test_iptables_checks_and_deletes_our_rules(
    namespace: Namespace, family: Family, name: TableName, chain: str, rule: Rule
) -> None:
    namespace.inside(lambda: Libiptc().replace(family, table_of(name, Chain(chain, (rule,), "ACCEPT"))))
    assert len(raw_entries.signed(namespace, family, name)) == 1
    words = [word.replace("\0", " ") for word in rule_text(rule).replace('"a b"', "a\0b").split()]
    namespace.run(IPTABLES[family], "-t", name, "-C", chain, *words)
    namespace.run(IPTABLES[family], "-t", name, "-D", chain, *words)
    assert raw_entries.signed(namespace, family, name) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_our_signature_outlives_what_iptables_does_to_other_rules(namespace: Namespace, family: Family) -> None:
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1, 2))))
    before = raw_entries.signed(namespace, family, "nat")
    namespace.run(IPTABLES[family], "-t", "nat", "-I", "OUTPUT", "-j", "RETURN")
    namespace.run(IPTABLES[family], "-t", "nat", "-A", "ISTIO_OUTPUT", "-j", "RETURN")
    assert raw_entries.signed(namespace, family, "nat") == before


# Packets


@pytest.mark.parametrize("family", FAMILIES)
def test_interfaces_match_themselves_alone(namespace: Namespace, family: Family) -> None:
    """Rules that only count, and datagrams that leave by lo, by veth0 and by veth1."""
    addresses = {"lo": "127.0.0.1", "veth0": "192.0.2.2", "veth1": "198.51.100.2"}
    if family == IPV6:
        addresses = {"lo": "::1", "veth0": "2001:db8:1::2", "veth1": "2001:db8:2::2"}
    request = [
        OutInterface("lo"),
        OutInterface("lo", negated=True),
        OutInterface("veth0"),
        OutInterface("veth+"),
        OutInterface("veth+", negated=True),
        OutInterface("l+"),
    ]
    sent = {"lo": 1, "veth0": 2, "veth1": 4}
    expected = [1, 6, 2, 6, 1, 1]
    only = (Protocol(UDP), DestinationPorts(PortRange(9, 9)))
    with Namespace() as peer:
        for device in ("veth0", "veth1"):
            namespace.run("ip", "link", "add", device, "type", "veth", "peer", "name", device, "netns", peer.name)
            prefix = addresses[device][:-1]
            length = "24" if family == IPV4 else "64"
            options = ["nodad"] if family == IPV6 else []
            namespace.run("ip", "address", "add", f"{prefix}1/{length}", "dev", device, *options)
            peer.run("ip", "address", "add", f"{addresses[device]}/{length}", "dev", device, *options)
            namespace.run("ip", "link", "set", device, "up")
            peer.run("ip", "link", "set", device, "up")

        def send() -> None:
            Libiptc().replace(
                family,
                table_of(
                    "mangle", Chain("OUTPUT", tuple(Rule((out, *only), Verdict("")) for out in request), "ACCEPT")
                ),
            )
            kind = socket.AF_INET if family == IPV4 else socket.AF_INET6
            with socket.socket(kind, socket.SOCK_DGRAM) as datagrams:
                for device, count in sent.items():
                    for _ in range(count):
                        datagrams.sendto(b"x", (addresses[device], 9))

        namespace.inside(send)
        lines = namespace.run(SAVE[family], "-c", "-t", "mangle").split("\n")
    assert [int(line[1:].partition(":")[0]) for line in lines if line.startswith("[")] == expected
