"""Long lists are written past libiptc: what the kernel holds then is, byte for byte, what libiptc writes."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.kernel.test_legacy_writers import preceded
from integration.kit.capabilities import without
from integration.kit.legacy_tables import reset
from integration.kit.namespace import Namespace
from integration.kit.pod import APP, Pod
from integration.kit.program import IPTABLES, RESTORE, SAVE
from istio_init import plan
from istio_init.errors import KernelError
from istio_init.formats.iptables_save import dump_table
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.libiptc import Handle, functions
from istio_init.kernel.xtables.pack_chain import pack_chain
from istio_init.kernel.xtables.packed_run import PackedRun
from istio_init.kernel.xtables.sockopt import TableSocket
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    TCP,
    Chain,
    Destination,
    InInterface,
    Jump,
    Network,
    PortRange,
    Protocol,
    Rule,
    Ruleset,
    Run,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from tests.kit.options import options
from tests.kit.strategies import wanted_tables
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Family, TableName
    from istio_init.planning.plan import Plan

# Longer than what goes through libiptc.
COUNT = 600
PORTS = tuple(PortRange(10_000 + 3 * number, 10_000 + 3 * number + number % 2) for number in range(COUNT))
NETWORKS = tuple(Network(struct.pack(">BBH", 10, 0, number), 32) for number in range(COUNT)) + tuple(
    Network(struct.pack(">HH12x", 0xFD00, number), 32 + number % 2 * 16) for number in range(COUNT)
)
REPLACE, ADD_COUNTERS = 64, 65


@pytest.fixture
def given_to_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The options of setsockopt that are used past libiptc from here on."""
    used: list[int] = []
    give = TableSocket.give

    def noted(socket: TableSocket, option: int, content: bytes | bytearray) -> None:
        used.append(option)
        give(socket, option, content)

    monkeypatch.setattr(TableSocket, "give", noted)
    return used


def long_plan(name: str) -> Plan:
    """A case's plan with long lists beside, or in place of, its own."""
    chosen = options(argv(name), {})
    assert chosen
    long = {
        "istio_local_exclude_ports": PORTS,
        "istio_local_outbound_ports_exclude": PORTS[::-1],
        "istio_outbound_ports": PORTS,
        "istio_service_exclude_cidr": (*chosen.istio_service_exclude_cidr, *NETWORKS),
    }
    if chosen.istio_inbound_ports not in ("*", ()):
        long["istio_inbound_ports"] = PORTS
    return plan(chosen.replace(**long, enable_ipv6=True))


def mangle(family: Family) -> Table:
    """A table with a long run of ports in ISTIO_INBOUND."""
    return next(
        table for which, table in long_tables("inbound-list-tproxy") if (which, table.name) == (family, "mangle")
    )


def is_long(table: Table) -> bool:
    return any(isinstance(part, Run) and len(part.values) >= COUNT for chain in table.chains for part in chain.parts)


def long_tables(name: str) -> Iterator[tuple[Family, Table]]:
    for ruleset in long_plan(name).rulesets:
        for table in ruleset.tables:
            if is_long(table):
                yield ruleset.family, table


def libiptc_writes(family: Family, table: Table) -> None:
    """Write a table that is empty by libiptc's functions alone, one call a rule."""
    with Handle(functions(family), table.name) as handle:
        for chain in table.chains:
            if chain.policy is None:
                handle.create(chain.name)
        for chain in table.chains:
            handle.append(chain.name, pack_chain(chain, family))
        handle.commit()


def standing(namespace: Namespace, family: Family, name: TableName) -> tuple[bytes, bytes]:
    """What the kernel tells of a table, its counters zero."""

    def ask() -> tuple[bytes, bytearray]:
        with TableSocket(family) as socket:
            return socket.table(name)

    info, entries = namespace.inside(ask)
    fields, header = (84, 112) if family == IPV4 else (136, 168)
    start = 0
    while start < len(entries):
        entries[start + header - 16 : start + header] = bytes(16)
        start += struct.unpack_from("=H", entries, start + fields + 6)[0]
    return info, bytes(entries)


def written_twice(namespace: Namespace, other: Namespace, family: Family, table: Table) -> None:
    """Write a table by the program and by libiptc, each in a namespace where it is empty; both hold the same then."""
    firewall = Libiptc()
    namespace.inside(lambda: firewall.replace(family, table))
    other.inside(lambda: libiptc_writes(family, table))
    assert standing(namespace, family, table.name) == standing(other, family, table.name)
    assert namespace.inside(lambda: firewall.read(family, Ruleset(family, (table,)))).table(table.name) == table


def rewritten(namespace: Namespace, family: Family, table: Table) -> None:
    """Write a table, and see that it is there but for its policies."""
    firewall = Libiptc()
    namespace.inside(lambda: firewall.replace(family, table))
    result = namespace.inside(lambda: firewall.read(family)).table(table.name)
    assert result
    assert [(chain.name, chain.rules) for chain in result.chains] == [
        (chain.name, chain.rules) for chain in table.chains
    ]


def saved(namespace: Namespace, family: Family, name: str, *flags: str) -> list[str]:
    text = namespace.run(SAVE[family], *flags, "-t", name)
    return [line for line in text.splitlines() if not line.startswith("#")]


def nat(family: Family, *rules: Rule | Run) -> Table:
    """A long run of networks in ISTIO_OUTPUT, behind a jump, and these rules."""
    networks = tuple(network for network in NETWORKS if network.family == family)
    run = Run((Rule((Destination(networks[0], False),), Verdict("RETURN"), True),), networks)
    jump = Chain("OUTPUT", (Rule((), Jump("ISTIO_OUTPUT"), True),), "ACCEPT")
    return Table("nat", ordered("nat", {"OUTPUT": jump, "ISTIO_OUTPUT": Chain.of("ISTIO_OUTPUT", (run, *rules))}))


# The second implementation is libiptc


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_libiptc_writes(namespace: Namespace, name: str, given_to_kernel: list[int]) -> None:
    tables = list(long_tables(name))
    assert {family for family, _ in tables} == {*FAMILIES}
    with Namespace() as other:
        for family, table in tables:
            given_to_kernel.clear()
            written_twice(namespace, other, family, table)
            assert given_to_kernel[:1] == [REPLACE]
            assert saved(namespace, family, table.name) == saved(other, family, table.name)


def test_the_cases_have_long_lists_in_every_chain_that_lists_go_to() -> None:
    places = {
        (table.name, chain.name)
        for name in CASES
        for _, table in long_tables(name)
        for chain in table.chains
        if any(isinstance(part, Run) and len(part.values) >= COUNT for part in chain.parts)
    }
    assert places == {("nat", "ISTIO_INBOUND"), ("mangle", "ISTIO_INBOUND"), ("nat", "ISTIO_OUTPUT")}


@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_is_whatever_stands_around_a_run(
    namespace: Namespace, family: Family, given_to_kernel: list[int]
) -> None:
    names: tuple[TableName, ...] = ("raw", "mangle", "nat")
    networks = tuple(network for network in NETWORKS if network.family == family)

    with Namespace() as other:

        @settings(max_examples=25, deadline=None)
        @given(st.sampled_from(names).flatmap(lambda name: wanted_tables(family, name)), st.data())
        def check(drawn: Table, data: st.DataObject) -> None:
            users = [chain.name for chain in drawn.chains if chain.policy is None]
            to = data.draw(st.sampled_from((Verdict("RETURN"), Verdict("ACCEPT"))))
            unit = [
                Rule((Destination(networks[0], False),), to, True),
                Rule((Destination(networks[0], True),), to, True),
            ]
            run = Run(tuple(unit[: data.draw(st.integers(1, 2))]), networks)
            chains = {chain.name: chain for chain in drawn.chains}
            for name in users or ["ISTIO_OUTPUT"]:
                rules = chains[name].rules if name in chains else ()
                chains[name] = Chain.of(name, (*rules, run, *rules))
            table = Table(drawn.name, ordered(drawn.name, chains))
            for each in (namespace, other):
                reset(each, family)
            given_to_kernel.clear()
            written_twice(namespace, other, family, table)
            assert given_to_kernel[:1] == [REPLACE]

        check()


# What exists already


POLICIES = """*mangle
:PREROUTING ACCEPT [1:100]
:INPUT DROP [2:200]
:FORWARD DROP [3:300]
COMMIT
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_policies_and_their_counters_stay(namespace: Namespace, family: Family, given_to_kernel: list[int]) -> None:
    """Over no rules, over other Istio rules, and over the same once more."""
    namespace.run(RESTORE[family], "--counters", text=POLICIES)
    long = mangle(family)
    chains = {chain.name: chain for chain in long.chains}
    chains["FORWARD"] = Chain("FORWARD", (Rule((Protocol(TCP),), Verdict(""), True),) * 3, "ACCEPT")
    longer = Table("mangle", ordered("mangle", chains))
    for table in (long, longer, long):
        given_to_kernel.clear()
        rewritten(namespace, family, table)
        assert given_to_kernel == [REPLACE, ADD_COUNTERS]
        lines = saved(namespace, family, "mangle", "-c")
        assert [line for line in lines if line[1:].startswith(("PRE", "INPUT", "FORWARD"))] == [
            ":PREROUTING ACCEPT [1:100]",
            ":INPUT DROP [2:200]",
            ":FORWARD DROP [3:300]",
        ]
        assert not [line for line in lines if line.startswith("[") and not line.startswith("[0:0]")]


def test_packets_that_policies_counted_stay_counted(namespace: Namespace, given_to_kernel: list[int]) -> None:
    def write_and_send() -> None:
        Libiptc().replace(IPV4, mangle(IPV4))
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("127.0.0.1", 0))
            for _ in range(3):
                sender.sendto(b"x", receiver.getsockname())

    for packets in (3, 6, 9):
        given_to_kernel.clear()
        namespace.inside(write_and_send)
        assert given_to_kernel == ([REPLACE] if packets == 3 else [REPLACE, ADD_COUNTERS])
        assert f":INPUT ACCEPT [{packets}:{packets * 29}]" in saved(namespace, IPV4, "mangle", "-c")


@pytest.mark.parametrize("others", ["-A POSTROUTING -m mark --mark 1 -j RETURN", "-A OUTPUT -j THEIRS", "-N THEIRS"])
@pytest.mark.parametrize("family", FAMILIES)
def test_where_others_have_something_libiptc_writes_around_it(
    namespace: Namespace, family: Family, others: str, given_to_kernel: list[int]
) -> None:
    if "THEIRS" in others:
        namespace.run(IPTABLES[family], "-t", "nat", "-N", "THEIRS")
    if others.startswith("-A"):
        text = f"*nat\n[7:77] {others}\nCOMMIT\n"
        namespace.run(RESTORE[family], "--noflush", "--counters", text=text)
    before = [line for line in saved(namespace, family, "nat", "-c") if "THEIRS" in line or "--mark" in line]
    assert before
    namespace.inside(lambda: Libiptc().replace(family, nat(family)))
    assert given_to_kernel == []
    lines = saved(namespace, family, "nat", "-c")
    assert [line for line in lines if "THEIRS" in line or "--mark" in line] == before
    assert sum("-A ISTIO_OUTPUT" in line for line in lines) == COUNT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_run_that_only_counts_is_written_by_libiptc(
    namespace: Namespace, family: Family, given_to_kernel: list[int]
) -> None:
    """Such a rule has the next one's place in it, so that no two of them are alike."""
    networks = tuple(network for network in NETWORKS if network.family == family)
    run = Run((Rule((Destination(networks[0], False),), Verdict(""), True),), networks)
    table = Table("nat", ordered("nat", {"ISTIO_OUTPUT": Chain.of("ISTIO_OUTPUT", (run,))}))
    rewritten(namespace, family, table)
    assert given_to_kernel == []


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_of_ours_that_a_restore_wrote_are_replaced(
    namespace: Namespace, family: Family, given_to_kernel: list[int]
) -> None:
    """Those without a signature, too, that jump to no Istio chain; a second one of them is another program's."""
    excluded = Chain("PREROUTING", (Rule((InInterface("eth1"),), Verdict("RETURN"), True),), "ACCEPT")
    table = nat(family)
    table = table.replace(chains=(excluded, *table.chains[1:]))
    namespace.run(RESTORE[family], text=dump_table(table))
    before = saved(namespace, family, "nat")
    rewritten(namespace, family, table)
    assert given_to_kernel[:1] == [REPLACE]
    assert saved(namespace, family, "nat") == before
    second = "-A PREROUTING -i eth1 -j RETURN"
    namespace.run(RESTORE[family], "--noflush", text=f"*nat\n{second}\nCOMMIT\n")
    given_to_kernel.clear()
    namespace.inside(lambda: Libiptc().replace(family, table))
    assert given_to_kernel == []
    assert saved(namespace, family, "nat").count(second) == 2


# Others who write at the same time


@pytest.mark.parametrize("moment", ["layout", REPLACE, ADD_COUNTERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_that_somebody_adds_meanwhile_is_kept(
    namespace: Namespace, family: Family, moment: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the last look, between that and the write, and between the write and giving counters back."""
    namespace.run(RESTORE[family], "--counters", text="*nat\n:INPUT ACCEPT [2:200]\nCOMMIT\n")
    rule = "OUTPUT -m mark --mark 0x1 -j RETURN"
    waiting = [lambda: namespace.run(IPTABLES[family], "-t", "nat", "-A", *rule.split())]
    give = TableSocket.give

    def disturbed(socket: TableSocket, option: int, content: bytes | bytearray) -> None:
        if option == moment and waiting:
            waiting.pop()()
        give(socket, option, content)

    monkeypatch.setattr(TableSocket, "give", disturbed)
    if moment == "layout":
        monkeypatch.setattr(PackedRun, "blocks", preceded(PackedRun.blocks, waiting.pop()))
    namespace.inside(lambda: Libiptc().replace(family, nat(family)))
    assert waiting == []
    lines = saved(namespace, family, "nat")
    assert sorted(line for line in lines if "-A OUTPUT" in line) == ["-A OUTPUT -j ISTIO_OUTPUT", f"-A {rule}"]
    assert sum("-A ISTIO_OUTPUT" in line for line in lines) == COUNT


def test_a_policy_that_somebody_changes_meanwhile_is_kept(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would not notice: the number of entries stays as it was."""
    change = ["iptables-legacy", "-t", "mangle", "-P", "INPUT", "DROP"]
    monkeypatch.setattr(PackedRun, "blocks", preceded(PackedRun.blocks, lambda: namespace.run(*change)))
    namespace.inside(lambda: Libiptc().replace(IPV4, mangle(IPV4)))
    assert ":INPUT DROP [0:0]" in saved(namespace, IPV4, "mangle")


# Refusals


REFUSED = {
    "an unknown extension": Rule((UnknownMatch("nosuch", 3, bytes(8)),), Verdict("RETURN")),
    "data of a wrong size": Rule((), UnknownTarget("MARK", 2, bytes(16))),
    "a chain that is not there": Rule((), Jump("NOWHERE")),
    "a built-in chain": Rule((), Jump("PREROUTING")),
    "an extension named as a verdict": Rule((), UnknownTarget("ACCEPT", 0, bytes(16))),
    "a loop": Rule((), Jump("ISTIO_OUTPUT")),
}


@pytest.mark.parametrize("rule", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_refused_is_said_as_of_libiptcs_tables(namespace: Namespace, family: Family, rule: Rule) -> None:
    namespace.run(RESTORE[family], "--counters", text="*nat\n:INPUT ACCEPT [2:200]\nCOMMIT\n")
    before = standing(namespace, family, "nat")
    message = refused(namespace, family, nat(family, rule))
    assert standing(namespace, family, "nat") == before
    assert ":INPUT ACCEPT [2:200]" in saved(namespace, family, "nat", "-c")
    with Namespace() as other:
        other.run(IPTABLES[family], "-t", "nat", "-N", "THEIRS")
        assert message == refused(other, family, nat(family, rule))


def test_so_it_is_of_a_chains_name_that_is_too_long(namespace: Namespace) -> None:
    table = nat(IPV4)
    _, message = refused(namespace, IPV4, table.replace(chains=(*table.chains, Chain("x" * 32, ()))))
    assert f"ipv4 nat: can't create chain {'x' * 32}: Invalid argument: " in message


def refused(namespace: Namespace, family: Family, table: Table) -> tuple[int | None, str]:
    with pytest.raises(KernelError) as refusal:
        namespace.inside(lambda: Libiptc().replace(family, table))
    return refusal.value.errno, str(refusal.value)


@pytest.mark.parametrize("missing", ["net_admin", "net_raw"])
def test_the_missing_capability_is_named(namespace: Namespace, missing: str) -> None:
    def attempt() -> str:
        without(missing)
        with pytest.raises(KernelError) as refusal:
            Libiptc().replace(IPV4, nat(IPV4))
        return str(refusal.value)

    assert f": {missing.upper()} missing: " in namespace.forked(attempt)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_that_the_kernel_does_not_have(namespace: Namespace, family: Family) -> None:
    nosuch = nat(family).replace(name="nosuch")
    _, message = refused(namespace, family, nosuch)
    assert message.startswith(f"{family} nosuch: can't open the table: No such file or directory: ")


# Packets


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_long_list_excludes_is_left_alone_and_nothing_else(family: Family) -> None:
    some = [f"10.7.{n // 250}.{n % 250}" if family == IPV4 else f"fd07::{n:x}" for n in range(COUNT)]
    with Pod(family) as pod:
        pod.listen("outbound", 15001)
        pod.listen_at_peer("peer", 80)
        for last, ends in ([], "outbound"), ([pod.addresses.peer], "peer"):
            pod.apply(f"-p 15001 -i '*' -x {','.join(some + last)} --reconcile")
            assert pod.dial(APP, (pod.addresses.peer, 80)).at == ends
            assert pod.dial(APP, (pod.addresses.outer, 80)).at == "outbound"
