"""The legacy tables by libiptc, against iptables itself: each reads what the other writes, nobody loses anything."""

from __future__ import annotations

import errno
import multiprocessing
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.kit import raw_entries
from integration.kit.canaries import canaries, plant
from integration.kit.namespace import Namespace
from integration.kit.program import IPTABLES, NAMES, RESTORE, SAVE, with_protocol_names
from istio_init.errors import KernelError
from istio_init.formats.iptables_save import dump_table, rule_text
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.libiptc import Handle, functions
from istio_init.kernel.xtables.sockopt import StepError
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
    Jump,
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
    ordered,
)
from istio_init.model.unknown import Comment
from tests.kit.strategies import rulesets, tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from istio_init.model.rules import Family, TableName

EVERY: tuple[TableName, ...] = ("raw", "mangle", "nat")
RETURN = Verdict("RETURN")


def table_of(name: TableName, *chains: Chain) -> Table:
    return Table(name, ordered(name, {chain.name: chain for chain in chains}))


def nat(*rules: Rule) -> Table:
    """These rules in ISTIO_OUTPUT, behind a jump."""
    jump = Rule((), Jump("ISTIO_OUTPUT"))
    return table_of("nat", Chain("OUTPUT", (jump,), "ACCEPT"), Chain("ISTIO_OUTPUT", rules))


def marked(*marks: int) -> tuple[Rule, ...]:
    return tuple(Rule((Mark(mark),), RETURN) for mark in marks)


def saved(namespace: Namespace, family: Family, name: str) -> str:
    """The table's lines from *NAME to COMMIT, as the kernel's own save prints them."""
    lines = namespace.run(SAVE[family], "-t", name).split("\n")
    return with_protocol_names("\n".join(line for line in lines if not line.startswith("#")))


def reset(namespace: Namespace, family: Family) -> None:
    text = "".join(dump_table(table_of(name)) for name in EVERY)
    namespace.run(RESTORE[family], text=text)


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


# What others have stays as it is

# By table, rules with matches, targets and header fields that no value of the model can express. `{far}` is an address.
STRANGE: dict[TableName, str] = {
    "raw": """
-A PREROUTING -m rpfilter --invert -j DROP
-A PREROUTING -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m connlimit --connlimit-above 9 -j CT --notrack
-A OUTPUT -p sctp -m sctp --dport 1:2 -j NOTRACK
-A OUTPUT -p tcp -j CT --helper ftp
""",
    "mangle": """
-A PREROUTING -d {far} -m u32 --u32 "0x0&0xff=0x1" -j CONNMARK --set-xmark 0x1/0xff
-A PREROUTING -m state --state NEW -j CONNMARK --save-mark --left-shift-mark 1
-A INPUT -m socket --transparent -j ACCEPT
-A FORWARD -m tos --tos 0x10/0x3f -j TOS --set-tos 0x10/0x3f
-A OUTPUT -m cpu --cpu 0 -j CLASSIFY --set-class 0:0
-A OUTPUT -m owner --uid-owner 1 --gid-owner 2
-A OUTPUT -m owner ! --socket-exists -j MARK --set-xmark 0x1/0x1
-A POSTROUTING -p udp -m time --timestart 01:00 --timestop 02:00 -j CHECKSUM --checksum-fill
-A POSTROUTING -m bpf --bytecode "1,6 0 0 0" -j NFLOG --nflog-group 7 --nflog-prefix "x y"
""",
    "nat": """
-A PREROUTING -p tcp -m tcp --dport 1 -j REDIRECT
-A PREROUTING -p tcp -m tcp --dport 1 -j REDIRECT --to-ports 1-9 --random
-A PREROUTING -m connbytes --connbytes 1:2 --connbytes-mode packets --connbytes-dir both -g STRANGE
-A PREROUTING -m dscp --dscp 0x01 -m pkttype --pkt-type broadcast -j STRANGE
-A STRANGE -m quota --quota 99 -j NFQUEUE --queue-num 3 --queue-bypass
-A STRANGE -p tcp -m tcp -m length --length 1:2 -j QUEUE
-A STRANGE -m mac --mac-source 00:11:22:33:44:55 -m comment --comment "ISTIO_OUTPUT, or not"
-A STRANGE -s 10.0.0.1/255.0.0.255 -f -j ACCEPT
""",
}


def plant_strange(namespace: Namespace, family: Family, table: TableName) -> None:
    """Load the strange rules, each with its own counters, and IPv4's header where the family has it."""
    chain = ":STRANGE - [0:0]\n" if "STRANGE" in STRANGE[table] else ""
    lines = STRANGE[table].format(far="192.0.2.9" if family == IPV4 else "2001:db8::9").strip().split("\n")
    if family == IPV6:
        lines = [line.replace("-s 10.0.0.1/255.0.0.255 -f", "-s fd00::1/ff00::ff -m frag") for line in lines]
    counted = "".join(f"[{number}:{number + 1}] {line}\n" for number, line in enumerate(lines, 5))
    namespace.run(RESTORE[family], "--counters", text=f"*{table}\n{chain}{counted}COMMIT\n")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family", FAMILIES)
def test_strange_rules_of_others_stay_byte_for_byte(namespace: Namespace, family: Family, name: TableName) -> None:
    plant_strange(namespace, family, name)
    before = raw_entries.of_others(namespace, family, name)
    text = namespace.run(SAVE[family], "-c", "-t", name)
    desired = table_of(
        name,
        Chain("PREROUTING", (*marked(1, 2), Rule((), Jump("ISTIO_INBOUND"))), "ACCEPT", inserted=1),
        Chain("OUTPUT", (Rule((), Jump("ISTIO_OUTPUT")),), "ACCEPT"),
        Chain("ISTIO_INBOUND", marked(3)),
        Chain("ISTIO_OUTPUT", marked(*range(50))),
    )

    def check() -> None:
        firewall = Libiptc()
        for plan in (desired, desired, table_of(name, Chain("ISTIO_DROP", marked(1)))):
            firewall.replace(family, plan)
            assert len(raw_entries.signed(namespace, family, name)) == sum(len(chain.rules) for chain in plan.chains)
            assert raw_entries.of_others(namespace, family, name) == before
        firewall.remove(family, name)

    namespace.inside(check)
    assert raw_entries.of_others(namespace, family, name) == before
    after = namespace.run(SAVE[family], "-c", "-t", name)
    assert without_dates(after) == without_dates(text)


def without_dates(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.startswith("#")]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family", FAMILIES)
def test_strange_rules_are_taken_for_nothing_else(namespace: Namespace, family: Family, name: TableName) -> None:
    """What is read of each packs to its very bytes, but for the signature."""
    plant_strange(namespace, family, name)
    table = namespace.inside(lambda: Libiptc().read(family)).table(name)
    assert table
    kept = raw_entries.of_others(namespace, family, name)
    fields, header = (84, 112) if family == IPV4 else (136, 168)
    rules = [rule for chain in table.chains for rule in chain.rules]
    assert len(rules) == STRANGE[name].count("-A ")
    for rule in rules:
        packed = pack(rule, family)
        if not isinstance(rule.target, Verdict | Jump):
            assert packed[:fields] + bytes(4) + packed[header:] in kept


@pytest.mark.parametrize("family", FAMILIES)
def test_canaries_in_every_table_live_through_all(namespace: Namespace, family: Family) -> None:
    plant(namespace, family)
    before = canaries(namespace, family)
    entries = {name: raw_entries.of_others(namespace, family, name) for name in BUILTIN_CHAINS}

    def check() -> None:
        firewall = Libiptc()
        for name, builtin in BUILTIN_CHAINS.items():
            jump = Rule((InInterface("eth9"),), Jump("ISTIO_INBOUND"))
            plan = table_of(name, Chain(builtin[0], (jump,), "ACCEPT", inserted=1), Chain("ISTIO_INBOUND", marked(1)))
            firewall.replace(family, plan)
        assert {name: raw_entries.of_others(namespace, family, name) for name in BUILTIN_CHAINS} == entries
        for name in BUILTIN_CHAINS:
            firewall.remove(family, name)

    namespace.inside(check)
    assert {name: raw_entries.of_others(namespace, family, name) for name in BUILTIN_CHAINS} == entries
    assert canaries(namespace, family) == before


def test_jumps_of_others_to_chains_of_ours_go_with_them(namespace: Namespace) -> None:
    """A chain can't go while something jumps to it; such a jump was Istio's, or is of no use without it."""
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(1))))
    namespace.run("iptables-legacy", "-t", "nat", "-N", "THEIRS")
    namespace.run("iptables-legacy", "-t", "nat", "-A", "THEIRS", "-p", "tcp", "-g", "ISTIO_OUTPUT")
    namespace.run("iptables-legacy", "-t", "nat", "-A", "THEIRS", "-p", "udp", "-j", "RETURN")
    namespace.inside(lambda: Libiptc().remove(IPV4, "nat"))
    assert [line for line in saved(namespace, IPV4, "nat").split("\n") if "-A" in line or "- [" in line] == [
        ":THEIRS - [0:0]",
        "-A THEIRS -p udp -j RETURN",
    ]


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


# Others who write at the same time


def preceded(function: Callable[..., object], first: Callable[[], object]) -> Callable[..., object]:
    """The function, before whose first call something else happens."""
    waiting = [first]

    def call(*arguments: object) -> object:
        while waiting:
            waiting.pop()()
        return function(*arguments)

    return call


@pytest.mark.parametrize("moment", ["__init__", "append", "commit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_that_somebody_adds_meanwhile_is_kept(
    namespace: Namespace, family: Family, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = ["-d", "192.0.2.9/32" if family == IPV4 else "2001:db8::9/128", "-j", "RETURN"]
    add = [IPTABLES[family], "-t", "nat", "-A", "OUTPUT", *theirs]
    monkeypatch.setattr(Handle, moment, preceded(getattr(Handle, moment), lambda: namespace.run(*add)))
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1))))
    rules = [line for line in saved(namespace, family, "nat").split("\n") if line.startswith("-A OUTPUT")]
    assert rules == [f"-A OUTPUT {' '.join(theirs)}", "-A OUTPUT -j ISTIO_OUTPUT"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_that_somebody_changes_meanwhile_is_kept(
    namespace: Namespace, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would not notice: the number of entries stays as it was."""
    namespace.run(IPTABLES[family], "-t", "nat", "-A", "OUTPUT", "-m", "mark", "--mark", "1", "-j", "RETURN")
    change = [IPTABLES[family], "-t", "nat", "-R", "OUTPUT", "1", "-m", "mark", "--mark", "2", "-j", "ACCEPT"]
    monkeypatch.setattr(Handle, "append", preceded(Handle.append, lambda: namespace.run(*change)))
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1))))
    rules = [line for line in saved(namespace, family, "nat").split("\n") if line.startswith("-A OUTPUT")]
    assert rules == ["-A OUTPUT -m mark --mark 0x2 -j ACCEPT", "-A OUTPUT -j ISTIO_OUTPUT"]


def test_chains_that_somebody_takes_away_meanwhile_are_made_anew(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libiptc does not find it can't empty: that is nobody's error."""
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(1))))

    def take_away() -> None:
        for flag in ("-F", "-X"):
            namespace.run(IPTABLES[IPV4], "-t", "nat", flag)

    monkeypatch.setattr(Handle, "__init__", preceded(Handle.__init__, take_away))
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(2))))
    table = namespace.inside(lambda: Libiptc().read(IPV4)).table("nat")
    own = table and table.chain("ISTIO_OUTPUT")
    assert own
    assert own.rules == marked(2)


def test_packets_that_are_counted_meanwhile_are_no_change(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.run(IPTABLES[IPV4], "-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j", "RETURN")
    jump = Rule((), Jump("ISTIO_OUTPUT"))
    desired = table_of("mangle", Chain("OUTPUT", (jump,), "ACCEPT"), Chain("ISTIO_OUTPUT", marked(1)))
    opened = []

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"x", ("127.0.0.1", 9))

    class Counted(Handle):
        def __init__(self, functions: dict[str, Any], name: TableName) -> None:
            opened.append(name)
            super().__init__(functions, name)

    monkeypatch.setattr("istio_init.kernel.xtables.libiptc.Handle", Counted)
    monkeypatch.setattr(Handle, "append", preceded(Handle.append, send))
    namespace.inside(lambda: Libiptc().replace(IPV4, desired))
    assert opened == ["mangle"]
    (theirs,) = [line for line in namespace.run(SAVE[IPV4], "-c", "-t", "mangle").split("\n") if "-p udp" in line]
    assert theirs.startswith("[1:")


def test_somebody_who_never_stops_is_an_error(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(1))))
    append = Handle.append

    def disturbed(handle: Handle, chain: str, entries: list[bytes]) -> None:
        with Handle(functions(IPV4), "nat") as other:
            append(other, "OUTPUT", [pack(Rule((), RETURN), IPV4)])
            other.commit()
        append(handle, chain, entries)

    monkeypatch.setattr(Handle, "append", disturbed)
    with pytest.raises(KernelError, match="ipv4 nat: another program wrote to the table 100 times"):
        namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(2))))
    table = namespace.inside(lambda: Libiptc().read(IPV4)).table("nat")
    assert table
    own = table.chain("ISTIO_OUTPUT")
    assert own
    assert own.rules == marked(1)


def append(family: Family, number: int) -> None:
    """What somebody does who takes no lock, but tries again where the kernel says that he must."""
    entry = pack(Rule((Mark(number),), RETURN), family).replace(b"ISTI", bytes(4))
    while True:
        with Handle(functions(family), "nat") as handle:
            handle.append("POSTROUTING", [entry])
            try:
                handle.commit()
            except StepError as error:
                if error.errno == errno.EAGAIN:
                    continue
                # Written; but libiptc had counters to set, and another program wrote in between.
                assert error.errno == errno.EINVAL  # noqa: PT017 (any other is the test's failure)
        return


@pytest.mark.parametrize("family", FAMILIES)
def test_two_who_take_no_lock_lose_nothing(namespace: Namespace, family: Family) -> None:
    """Somebody appends rules while ours are written again and again, more and fewer."""
    namespace.inside(lambda: Libiptc().replace(family, nat()))
    stopped = multiprocessing.Event()
    appended = multiprocessing.Value("i", 0)
    begun = multiprocessing.Value("d", time.monotonic())

    def append_until_stopped() -> None:
        namespace.enter()
        while not stopped.is_set():
            append(family, appended.value)
            appended.value += 1
            # On a busy machine, too, the other is to be done first at times: the longer it takes, the longer the pause.
            began = begun.value
            time.sleep((time.monotonic() - began) * random.uniform(0, 3))

    def write() -> None:
        firewall = Libiptc()
        rounds = 0
        while appended.value < 60 and other.is_alive():
            rounds += 1
            begun.value = time.monotonic()
            firewall.replace(family, nat(*marked(*range(rounds % 7))))

    other = multiprocessing.get_context("fork").Process(target=append_until_stopped)
    other.start()
    try:
        namespace.inside(write)
    finally:
        stopped.set()
        other.join()
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1, 2, 3))))
    assert other.exitcode == 0
    table = namespace.inside(lambda: Libiptc().read(family)).table("nat")
    assert table
    theirs, ours = table.chain("POSTROUTING"), table.chain("ISTIO_OUTPUT")
    assert theirs
    assert ours
    assert theirs.rules == marked(*range(appended.value))
    assert ours.rules == marked(1, 2, 3)
