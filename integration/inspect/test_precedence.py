"""A rule of another program that decides before Istio's is a warning, with a packet, in check, apply and show."""

from __future__ import annotations

import pytest

from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.program import succeed
from tests.planning.cases import argv

REDIRECT, TPROXY = argv("article-ipv6"), argv("article-tproxy")
# The table, the chain, another program's rule, the plan, and the packet that shows it.
TAKING = [
    ("nat", "OUTPUT", "-p tcp -j ACCEPT", REDIRECT, "tcp 192.0.2.10:40000 -> 203.0.113.1:80, out eth0, uid 1000"),
    ("nat", "OUTPUT", "-d 198.51.100.0/24 -j RETURN", REDIRECT, "198.51.100.1:80"),
    ("nat", "OUTPUT", "-p tcp -m tcp --dport 8443 -j DNAT --to-destination 198.51.100.7", REDIRECT, "203.0.113.1:8443"),
    ("nat", "PREROUTING", "-i eth0 -p tcp -j ACCEPT", REDIRECT, "192.0.2.1:40000 -> 192.0.2.10:8080, in eth0"),
    ("mangle", "PREROUTING", "-p tcp -m tcp --dport 9000 -j ACCEPT", TPROXY, "192.0.2.10:9000"),
]
# These let every packet that Istio captures go on.
HARMLESS = [
    ("nat", "OUTPUT", "-p icmp -j ACCEPT"),
    ("nat", "OUTPUT", "-m owner --uid-owner 1337 -j RETURN"),
    ("nat", "PREROUTING", "-p udp -m udp --dport 53 -j ACCEPT"),
    ("filter", "OUTPUT", "-p tcp -j ACCEPT"),
]


def plant(namespace: Namespace, backend: str, table: str, chain: str, rule: str) -> None:
    namespace.run(f"iptables-{backend}", "-w", "-t", table, "-I", chain, *rule.split())


@pytest.mark.parametrize("backend", ["legacy", "nft"])
@pytest.mark.parametrize(("table", "chain", "rule", "plan", "packet"), TAKING)
def test_it_is_a_warning_with_a_packet(
    namespace: Namespace, backend: str, table: str, chain: str, rule: str, plan: list[str], packet: str
) -> None:
    choice = BACKENDS[backend]
    plant(namespace, backend, table, chain, rule)
    log = succeed(namespace, *choice, *plan)
    [warning] = [line for line in log.splitlines() if "decides before Istio's rules" in line]
    assert "\twarn\t" in warning
    assert f"ipv4 {table} {chain} rule 1, of another program" in warning
    assert packet in warning
    checked = ask(namespace, "check", *choice, *plan)
    assert checked.code == 0  # the plan is in place, as Istio's own program leaves it
    assert packet in checked.output
    assert ask(namespace, "check", *choice, *plan, "--output", "json").document["warnings"] != []
    assert packet in ask(namespace, "show", *choice, *plan).output
    assert "decides before" in succeed(namespace, *choice, *plan)
    assert "decides before" not in succeed(namespace, *choice, *plan, "--insert-jumps", "--reconcile")


@pytest.mark.parametrize(("table", "chain", "rule"), HARMLESS)
def test_what_captured_packets_do_not_meet_is_none(namespace: Namespace, table: str, chain: str, rule: str) -> None:
    plant(namespace, "legacy", table, chain, rule)
    assert "decides before" not in succeed(namespace, *BACKENDS["legacy"], *REDIRECT)
    assert "warning" not in ask(namespace, "check", *BACKENDS["legacy"], *REDIRECT).output


def test_a_rule_behind_istios_is_none(namespace: Namespace) -> None:
    succeed(namespace, *BACKENDS["legacy"], *REDIRECT)
    namespace.run("iptables-legacy", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    assert "decides before" not in succeed(namespace, *BACKENDS["legacy"], *REDIRECT)
