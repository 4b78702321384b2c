"""What others have in the legacy tables stays as it is, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.kit import raw_entries
from integration.kit.canaries import canaries, plant
from integration.kit.legacy_tables import EVERY, marked, nat, saved, table_of
from integration.kit.namespace import Namespace
from integration.kit.program import RESTORE, SAVE
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    FAMILIES,
    IPV4,
    IPV6,
    Chain,
    InInterface,
    Jump,
    Rule,
    Verdict,
)

if TYPE_CHECKING:
    from istio_init.model.rules import Family, TableName

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
