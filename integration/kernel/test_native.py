"""Native nftables in the real kernel: the text, one transaction, others' tables, drift, undoing."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import pytest

from integration.kit.capabilities import without
from integration.kit.namespace import Namespace
from integration.kit.program import completed, existing, refuse, routing, start, succeed
from integration.kit.tracing import traced
from istio_init import plan
from istio_init.errors import KernelError
from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
from istio_init.kernel.nft.native import Nftables
from istio_init.model.compare import TableChange
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    Chain,
    DestinationPorts,
    PortRange,
    Protocol,
    Rule,
    Table,
    Verdict,
    ordered,
)
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.planning.plan import Plan

NATIVE = "--native-nftables"
TPROXY = [*argv("article-tproxy"), NATIVE]
REDIRECT = [*argv("article-ipv6"), NATIVE]
TABLES = ("istio-proxy-raw", "istio-proxy-mangle", "istio-proxy-nat")
# Tables of others, one of them with a name like ours in another family.
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
    """What nft says of everything that stands."""
    return namespace.run("nft", "list", "ruleset")


def by_table(text: str) -> dict[str, str]:
    """A listing by table; comments left out."""
    found: dict[str, str] = {}
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("#"):
            lines.append(line)
        if line == "}\n":
            found[lines[0]] = "".join(lines)
            lines = []
    return found


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
    """One for six tables of iptables, one for what stands instead of them, one to take all away."""
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
        "raw OUTPUT rule 2 unexpected: -j nftables [unknown",
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
    change, said = DRIFTS[drift]
    succeed(namespace, *TPROXY)
    before = ruleset(namespace)
    namespace.run("nft", change)
    drifted = ruleset(namespace)
    if said:
        assert said in refuse(namespace, *TPROXY)
        assert ruleset(namespace) == drifted
        succeed(namespace, *TPROXY, "--reconcile")
    else:
        # A chain without a rule does nothing, and goes with the next writing.
        assert "in place" in succeed(namespace, *TPROXY)
        succeed(namespace, *TPROXY, "--force-apply")
    assert by_table(ruleset(namespace)) == by_table(before)


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


def test_a_transaction_that_is_refused_does_nothing(namespace: Namespace) -> None:
    """Its last rule asks for a port that can't be."""
    succeed(namespace, *REDIRECT)
    before = ruleset(namespace)
    rules = (Rule((), Verdict("ACCEPT")), Rule((Protocol(6), DestinationPorts(PortRange(1, 2**17))), Verdict("DROP")))
    chains = {"OUTPUT": Chain("OUTPUT", rules, "ACCEPT")}
    changes = (
        TableChange(IPV4, "raw", planned(TPROXY).rulesets[0].table("raw")),
        TableChange(IPV4, "nat", Table("nat", ordered("nat", chains))),
    )

    def write() -> str:
        with pytest.raises(KernelError) as caught:
            Nftables().write(changes)
        return str(caught.value)

    said = namespace.inside(write)
    assert said.startswith("nftables: can't write the tables istio-proxy-raw, istio-proxy-nat: ")
    assert "\n" not in said
    assert ruleset(namespace) == before


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
    wanted = planned(REDIRECT)

    def write() -> bool:
        without("net_raw")
        firewall = Nftables()
        for each in wanted.rulesets:
            for table in each.tables:
                firewall.replace(each.family, table)
        return all(firewall.read(each.family, each) == each for each in wanted.rulesets)

    assert namespace.forked(write)


def test_no_process_is_started(namespace: Namespace) -> None:
    run = traced(namespace, "execve,clone,clone3,fork,vfork", *TPROXY)
    assert run.code == 0, run.log
    assert len(run.calls) == 1, run.calls


def test_a_missing_library_is_said(namespace: Namespace, tmp_path: pathlib.Path) -> None:
    """The loader finds an empty file of that name first."""
    (tmp_path / "libnftables.so.1").write_bytes(b"")
    # Reading an empty namespace takes no library; writing does.
    said = refuse(namespace, *REDIRECT, env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert "libnftables.so.1 can't be opened" in said
    assert "libnftables1" in said
    assert ruleset(namespace) == ""


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
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 20, said
    found = by_table(ruleset(namespace))
    plans = [by_table(completed(namespace, *words, "--dry-run").stdout) for words in (TPROXY, REDIRECT)]
    assert found in plans
