"""Native nftables in the real kernel: the text, one transaction, others' tables, drift, undoing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from integration.kit.backends import as_older_nft
from integration.kit.capabilities import without
from integration.kit.namespace import Namespace
from integration.kit.nft_dump import inet_objects
from integration.kit.program import completed, existing, refuse, routing, start, succeed
from integration.kit.tracing import traced
from istio_init import plan
from istio_init.errors import KernelError
from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
from istio_init.kernel.nft.expressions import expression
from istio_init.kernel.nft.native import Nftables
from istio_init.model.compare import TableChange
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    Chain,
    DestinationPorts,
    Jump,
    PortRange,
    Protocol,
    Rule,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import UnknownTarget
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.model.rules import Match, Target
    from istio_init.planning.plan import Plan

NATIVE = "--native-nftables"
TPROXY = [*argv("article-tproxy"), NATIVE]
REDIRECT = [*argv("article-ipv6"), NATIVE]
TABLES = ("istio-proxy-raw", "istio-proxy-mangle", "istio-proxy-nat")
# Other programs' tables, one of them with a name like ours in another family.
OTHERS = """\
table inet mine {
	chain output {
		type filter hook output priority filter + 5; policy accept;
		tcp dport 9 counter packets 3 bytes 5 drop
	}
}
table ip istio-proxy-nat {
	chain istio-output {
		ip daddr 10.0.0.1 accept
	}
}
"""


def ruleset(namespace: Namespace) -> str:
    """What nft says of everything that exists."""
    return namespace.run("nft", "list", "ruleset")


def nft_version(namespace: Namespace) -> tuple[int, ...]:
    """The version of this machine's nft."""
    match = re.search(r"v(\d+)\.(\d+)", namespace.run("nft", "--version"))
    assert match
    return tuple(map(int, match.groups()))


def by_table(text: str) -> dict[str, str]:
    """A listing by table, as nft 1.0.6 prints it; comments left out."""
    result: dict[str, str] = {}
    lines: list[str] = []
    for line in as_older_nft(text).splitlines(keepends=True):
        if not line.startswith("#"):
            lines.append(line)
        if line == "}\n":
            result[lines[0]] = "".join(lines)
            lines = []
    return result


def planned(words: list[str]) -> Plan:
    """The plan of a command line that leaves nothing to the machine."""
    chosen = options(words, {})
    assert chosen is not None
    return plan(chosen)


@pytest.mark.parametrize("name", CASES)
def test_case(namespace: Namespace, name: str) -> None:
    """A dry run prints what nft prints after a run; a second run writes nothing; cleaning up leaves nothing."""
    empty = routing(namespace)
    dry = completed(namespace, *argv(name), NATIVE, "--dry-run")
    assert (dry.returncode, ruleset(namespace)) == (0, "")
    succeed(namespace, *argv(name), NATIVE)
    assert by_table(ruleset(namespace)) == by_table(dry.stdout)
    assert not any(existing(namespace, family) for family in FAMILIES)
    before = ruleset(namespace)
    assert "in place, nothing written" in succeed(namespace, *argv(name), NATIVE)
    assert ruleset(namespace) == before
    succeed(namespace, NATIVE, "--cleanup-only")
    assert ruleset(namespace) == ""
    succeed(namespace, *argv(name), NATIVE, "--cleanup-only")
    assert routing(namespace) == empty


# Long lists, which have sets of their own, and whatever else the cases leave out.
LISTS = {
    "networks": ["-x", ",".join(f"10.{n}.0.0/{17 + n % 15}" for n in range(100)), "-i", "0.0.0.0/1,128.0.0.0/2"],
    "networks of a few lengths": [
        *("-i", "*", "-x"),
        ",".join(
            (*(f"10.{n}.{n}.0/{(16, 24, 32)[n % 3]}" for n in range(200)), "10.0.0.0/9", "10.0.0.0/16", "fd00::/9")
        ),
        "--enable-ipv6",
    ],
    "IPv6 networks of a few lengths": [
        *("-i", ",".join(f"fd00:{n:x}::/{(32, 47, 128)[n % 3]}" for n in range(1, 300)), "-x", "fd00:5::/64"),
        "--enable-ipv6",
    ],
    "ports": ["-b", "*", "-d", ",".join(f"{n}-{n + n % 3}" for n in range(1, 400, 5)), "-o", "1-65535"],
    "addresses": ["-i", "*", "-x", ",".join(f"fd00::{n:x}" for n in range(1, 200, 2)), "--enable-ipv6"],
    "every address": ["-i", "*", "-x", "0.0.0.0/0,::/0", "--enable-ipv6"],
    "the last addresses": ["-i", "*", "-x", "255.255.255.0/24,10.0.0.0/9,ffff::/16,fd00::/9", "--enable-ipv6"],
    "the last ports": ["-b", "*", "-d", "5-7,65530-65535", "-o", "1-3,65535"],
    "owners": ["-i", "*", "--istio-outbound-owner-groups", "5,7,100000"],
    "interfaces": ["-i", "*", "-c", "eth+,tcp,sctp,@name,a*,redirect,*a", "-k", "vhost+,virbr0"],
}
LINES = {**{name: argv(name) for name in CASES}, **{name: ["-u", "1337", *words] for name, words in LISTS.items()}}


@pytest.mark.parametrize("name", LINES)
def test_a_run_writes_what_nft_does(namespace: Namespace, name: str) -> None:
    """Byte for byte, as the kernel dumps it: expressions, flags of sets, elements, and what nft keeps for itself.

    nft 1.1 has other expressions for ranges, and other notes, that list as the same text.
    """
    dry = completed(namespace, *LINES[name], NATIVE, "--dry-run").stdout
    with Namespace() as reference:
        reference.run("nft", "-f", "-", text=dry)
        outcome = reference.inside(inet_objects)
    succeed(namespace, *LINES[name], NATIVE)
    if nft_version(namespace) < (1, 1):
        assert namespace.inside(inet_objects) == outcome
    assert by_table(ruleset(namespace)) == by_table(dry)
    assert "in place" in succeed(namespace, *LINES[name], NATIVE)


@pytest.mark.parametrize("name", CASES)
def test_what_nft_loads_from_a_dry_run_is_the_plan(namespace: Namespace, name: str) -> None:
    dry = completed(namespace, *argv(name), NATIVE, "--dry-run").stdout
    namespace.run("nft", "-f", "-", text=dry)
    for line in dry.splitlines():
        if line.startswith("#"):
            namespace.run(*line[1:].split())
    before = ruleset(namespace)
    assert "in place, nothing written" in succeed(namespace, *argv(name), NATIVE)
    assert ruleset(namespace) == before


def test_others_tables_stay(namespace: Namespace) -> None:
    namespace.run("nft", "-f", "-", text=OTHERS)
    succeed(namespace, *TPROXY)
    succeed(namespace, *REDIRECT, "--reconcile")
    assert set(by_table(OTHERS).items()) < set(by_table(ruleset(namespace)).items())
    succeed(namespace, NATIVE, "--cleanup-only")
    assert ruleset(namespace) == OTHERS


def generation(namespace: Namespace) -> int:
    """The kernel's count of nftables transactions in the namespace."""

    def ask() -> int:
        with NfnetlinkChannel() as channel:
            return channel.generation()

    return namespace.inside(ask)


def test_one_transaction_replaces_all(namespace: Namespace) -> None:
    """One for six tables of iptables, one for what replaces them, one to take all away."""
    before = generation(namespace)
    for words in (TPROXY, [*REDIRECT, "--reconcile"], [NATIVE, "--cleanup-only"]):
        succeed(namespace, *words)
        assert generation(namespace) == before + 1
        before += 1


DRIFTS = {
    "a rule gone": ("flush chain inet istio-proxy-nat istio-redirect", "nat ISTIO_REDIRECT rule 1 missing"),
    "a rule more": (
        "insert rule inet istio-proxy-nat istio-output tcp dport 443 return",
        "ipv4 nat ISTIO_OUTPUT rule 1 unexpected: -p tcp -m tcp --dport 443 -j RETURN",
    ),
    "a rule of one family more": (
        "insert rule inet istio-proxy-nat istio-output meta nfproto ipv6 return",
        "ipv6 nat ISTIO_OUTPUT rule 1 unexpected: -j RETURN",
    ),
    "a rule that we don't model": (
        "add rule inet istio-proxy-raw output limit rate 1/second accept",
        "raw OUTPUT rule 2 unexpected: -m nftables [unknown",
    ),
    "a chain more": ("add chain inet istio-proxy-mangle other { type filter hook input priority 0; }", ""),
    "a table gone": ("delete table inet istio-proxy-raw", "raw table: missing"),
    "another policy": (
        "add chain inet istio-proxy-mangle prerouting { type filter hook prerouting priority mangle; policy drop; }",
        "mangle PREROUTING rule 1 missing",
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_is_said_and_mended(namespace: Namespace, drift: str) -> None:
    change, message = DRIFTS[drift]
    succeed(namespace, *TPROXY)
    before = ruleset(namespace)
    namespace.run("nft", change)
    drifted = ruleset(namespace)
    if message:
        assert message in refuse(namespace, *TPROXY)
        assert ruleset(namespace) == drifted
        succeed(namespace, *TPROXY, "--reconcile")
    else:
        # A chain without a rule does nothing, and goes with the next writing.
        assert "in place" in succeed(namespace, *TPROXY)
        succeed(namespace, *TPROXY, "--force-apply")
    assert by_table(ruleset(namespace)) == by_table(before)


MIXED = [
    *("-i", "*", "--no-enable-ipv6", "-u", "1337", NATIVE, "-x"),
    ",".join(f"10.{n}.0.0/{(16, 24)[n % 2]}" for n in range(200)),
]


def test_drift_of_a_long_list_is_told_by_its_networks(namespace: Namespace) -> None:
    succeed(namespace, *MIXED)
    before = ruleset(namespace)
    namespace.run("nft", "delete element inet istio-proxy-nat ipv4-1 { 10.7.0.0 }")
    namespace.run("nft", "add element inet istio-proxy-nat ipv4-1 { 10.200.0.0 }")
    message = refuse(namespace, *MIXED)
    assert "-d 10.7.0.0/24 -j RETURN" in message
    assert "-d 10.200.0.0/24 -j RETURN" in message
    assert message.count("-j RETURN") == 2
    succeed(namespace, *MIXED, "--reconcile")
    assert by_table(ruleset(namespace)) == by_table(before)


def test_a_long_list_of_an_earlier_release_is_in_place(namespace: Namespace) -> None:
    """One set of intervals. It is written anew with the next change."""
    succeed(namespace, *MIXED)
    text = ruleset(namespace)
    spans = ", ".join(f"10.{n}.0.0/{(16, 24)[n % 2]}" for n in range(200))
    [at] = [number for number, line in enumerate(text.splitlines()) if "@ipv4-2" in line]
    lines = [line for line in text.splitlines() if "@ipv4-1" not in line]
    lines[at - 1] = "ip daddr @ipv4-1 counter return"
    chains = "\n".join(lines[next(n for n, line in enumerate(lines) if "\tchain" in line) :])
    earlier = f"set ipv4-1 {{ type ipv4_addr; flags interval; elements = {{ {spans}, 127.0.0.1 }} }}\n{chains}"
    earlier = earlier.replace("\t\tip daddr 127.0.0.1 counter packets 0 bytes 0 return\n", "")
    namespace.run("nft", "delete table inet istio-proxy-nat")
    namespace.run("nft", "-f", "-", text=f"table inet istio-proxy-nat {{\n{earlier}\n")
    before = ruleset(namespace)
    assert "in place, nothing written" in succeed(namespace, *MIXED)
    assert ruleset(namespace) == before
    succeed(namespace, *MIXED, "--force-apply")
    assert by_table(ruleset(namespace)) == by_table(text)


def test_an_earlier_ipv6_stays_where_ipv4_alone_is_planned(namespace: Namespace) -> None:
    """As with the legacy tables: a plan is about its own families."""
    succeed(namespace, *REDIRECT)
    before = ruleset(namespace)
    assert "in place" in succeed(namespace, *argv("article"), NATIVE)
    assert ruleset(namespace) == before


def test_a_second_family_is_added(namespace: Namespace) -> None:
    succeed(namespace, *argv("article"), NATIVE)
    succeed(namespace, *REDIRECT, "--reconcile")
    with Namespace() as fresh:
        succeed(fresh, *REDIRECT)
        assert by_table(ruleset(namespace)) == by_table(ruleset(fresh))


def refused(namespace: Namespace, target: Target, *matches: Match) -> str:
    """What is said of a transaction whose last rule the kernel refuses; it changes nothing."""
    succeed(namespace, *REDIRECT)
    before = ruleset(namespace)
    chains = {"OUTPUT": Chain("OUTPUT", (Rule((), Verdict("ACCEPT")), Rule(matches, target)), "ACCEPT")}
    changes = (
        TableChange(IPV4, "raw", planned(TPROXY).rulesets[0].table("raw")),
        TableChange(IPV4, "nat", Table("nat", ordered("nat", chains))),
    )

    def write() -> str:
        with pytest.raises(KernelError) as caught:
            Nftables().write(changes)
        return str(caught.value)

    outcome = namespace.inside(write)
    assert "\n" not in outcome
    assert ruleset(namespace) == before
    return outcome


def test_a_refusal_names_the_rule_and_the_expression(namespace: Namespace) -> None:
    """The kernel says where in the message it found what it does not have."""
    unknown = expression("counter", b"") + expression("nonesuch", b"")
    message = refused(namespace, UnknownTarget("nftables", 0, unknown), Protocol(6))
    assert message.startswith(
        "nftables: can't write inet istio-proxy-nat output rule 2 'meta nfproto ipv4 meta l4proto tcp "
    )
    assert ": nonesuch: No such file or directory (ENOENT): the kernel lacks an nftables extension" in message


def test_a_refusal_names_the_chain_that_a_jump_misses(namespace: Namespace) -> None:
    message = refused(namespace, Jump("ISTIO_TPROXY"))
    assert message.startswith("nftables: can't write inet istio-proxy-nat output rule 2 ")
    assert "jump istio-tproxy': immediate: No such file or directory (ENOENT)" in message


def test_a_rule_that_no_message_can_hold_is_refused(namespace: Namespace) -> None:
    message = refused(namespace, Verdict("DROP"), Protocol(6), DestinationPorts(PortRange(1, 2**17)))
    assert message.startswith("nftables: inet istio-proxy-nat output rule 2 'meta nfproto ipv4 tcp dport 1-131072 ")


def test_routing_that_fails_undoes_the_rules(namespace: Namespace) -> None:
    """Lo is down: the first route is refused, and nothing was written."""
    namespace.run("ip", "link", "set", "lo", "down")
    before = routing(namespace)
    assert "lo is down" in refuse(namespace, *TPROXY)
    assert ruleset(namespace) == ""
    assert routing(namespace) == before


def test_without_net_admin_the_capability_is_named(namespace: Namespace) -> None:
    def read() -> str:
        without("net_admin")
        with pytest.raises(KernelError) as caught:
            Nftables().read(IPV4)
        return str(caught.value)

    assert "NET_ADMIN" in namespace.forked(read)


def test_net_raw_is_not_needed(namespace: Namespace) -> None:
    desired = planned(REDIRECT)

    def write() -> bool:
        without("net_raw")
        firewall = Nftables()
        for each in desired.rulesets:
            for table in each.tables:
                firewall.replace(each.family, table)
        return all(firewall.read(each.family, each) == each for each in desired.rulesets)

    assert namespace.forked(write)


def test_no_process_is_started(namespace: Namespace) -> None:
    run = traced(namespace, "execve,clone,clone3,fork,vfork", *TPROXY)
    assert run.code == 0, run.log
    assert len(run.calls) == 1, run.calls


def test_ten_thousand_ports_and_networks(namespace: Namespace) -> None:
    """As many rules as for one of each, and the text is nft's."""
    ports = ",".join(str(port) for port in range(1, 20001, 2))
    networks = ",".join(f"9.{n // 250}.{n % 250}.1" for n in range(10000))
    many = ["-i", "*", "-b", "*", "-d", ports, "-x", networks, "-u", "1337", "--no-enable-ipv6", NATIVE]
    few = ["-i", "*", "-b", "*", "-d", "1,3", "-x", "9.0.0.1,9.1.0.1", "-u", "1337", "--no-enable-ipv6", NATIVE]
    dry = completed(namespace, *many, "--dry-run").stdout
    succeed(namespace, *many)
    assert by_table(ruleset(namespace)) == by_table(dry)
    assert "in place" in succeed(namespace, *many)
    rules = ruleset(namespace).count("counter")
    succeed(namespace, *few, "--reconcile")
    assert ruleset(namespace).count("counter") == rules


# Istio's own native mode for `-b '*' -i '*'`, as its README shows it: no counters, IPv6 taken along.
ISTIOS = """
add table inet istio-proxy-nat
add chain inet istio-proxy-nat prerouting { type nat hook prerouting priority -100 ; }
add chain inet istio-proxy-nat output { type nat hook output priority -100 ; }
add chain inet istio-proxy-nat istio-inbound
add chain inet istio-proxy-nat istio-redirect
add chain inet istio-proxy-nat istio-in-redirect
add chain inet istio-proxy-nat istio-output
add rule inet istio-proxy-nat istio-inbound tcp dport 15008 return
add rule inet istio-proxy-nat istio-redirect meta l4proto tcp redirect to :15001
add rule inet istio-proxy-nat istio-in-redirect meta l4proto tcp redirect to :15006
add rule inet istio-proxy-nat prerouting meta l4proto tcp jump istio-inbound
add rule inet istio-proxy-nat istio-inbound meta l4proto tcp jump istio-in-redirect
add rule inet istio-proxy-nat output jump istio-output
add rule inet istio-proxy-nat istio-output oifname lo ip saddr 127.0.0.6/32 return
add rule inet istio-proxy-nat istio-output oifname lo ip daddr != 127.0.0.1/32 tcp dport != 15008 skuid 1337 \
    jump istio-in-redirect
add rule inet istio-proxy-nat istio-output oifname lo skuid != 1337 return
add rule inet istio-proxy-nat istio-output skuid 1337 return
add rule inet istio-proxy-nat istio-output oifname lo ip daddr != 127.0.0.1/32 tcp dport != 15008 skgid 1337 \
    jump istio-in-redirect
add rule inet istio-proxy-nat istio-output oifname lo skgid != 1337 return
add rule inet istio-proxy-nat istio-output skgid 1337 return
add rule inet istio-proxy-nat istio-output ip daddr 127.0.0.1/32 return
add rule inet istio-proxy-nat istio-output jump istio-redirect
"""


def test_what_istio_wrote_is_understood(namespace: Namespace) -> None:
    """For IPv4 it is the plan, although it counts nothing; and it is taken away like ours."""
    namespace.run("nft", "-f", "-", text=ISTIOS)
    assert "in place" in succeed(
        namespace, "-i", "*", "-b", "*", "-u", "1337", "-g", "1337", "--no-enable-ipv6", NATIVE
    )
    succeed(namespace, NATIVE, "--cleanup-only")
    assert ruleset(namespace) == ""


def test_twenty_at_once_end_in_one_plan(namespace: Namespace) -> None:
    words = ["--reconcile", "--log_output_level", "error"]
    runs = [start(namespace, *(TPROXY if number % 2 else REDIRECT), *words) for number in range(20)]
    output = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 20, output
    actual = by_table(ruleset(namespace))
    plans = [by_table(completed(namespace, *words, "--dry-run").stdout) for words in (TPROXY, REDIRECT)]
    assert actual in plans
