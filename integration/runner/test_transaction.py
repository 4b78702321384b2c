"""Applying is a transaction: written once, drift is said, reconciling converges, and others' rules stay."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from integration.kit.canaries import canaries, plant
from integration.kit.namespace import Namespace
from integration.kit.program import (
    IPTABLES,
    all_saved,
    existing,
    refuse,
    routing,
    saved,
    standing,
    succeed,
    tables,
)
from integration.kit.tracing import commits, traced
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from tests.planning.cases import CASES, GOLDEN, argv

if TYPE_CHECKING:
    from istio_init.model.rules import Family

TPROXY = argv("article-tproxy")
REDIRECT = argv("article-ipv6")
EVERY_TABLE = [f"{family} {table}" for family in ("ipv6", "ipv4") for table in ("raw", "mangle", "nat")]
ROUTING = "setsockopt,sendto"


def in_place(namespace: Namespace, name: str) -> bool:
    """Whether the kernel holds a case's golden text in every table that the text has."""
    first, _, second = (GOLDEN / f"{name}.txt").read_text().partition("# IPv6: for ip6tables-restore\n")
    return all(saved(namespace, family) == tables(text) for family, text in ((IPV4, first), (IPV6, second)))


def test_a_run_writes_each_table_once_and_a_second_run_nothing(namespace: Namespace) -> None:
    first = traced(namespace, ROUTING, *TPROXY)
    assert first.code == 0, first.log
    assert sorted(commits(first)) == sorted(EVERY_TABLE)
    assert commits(first)[-1] == "ipv4 nat"
    before = standing(namespace)
    second = traced(namespace, ROUTING, *TPROXY)
    assert second.code == 0
    assert "in place, nothing written" in second.log
    assert not commits(second)
    assert not second.having("RTM_NEW")
    assert standing(namespace) == before


def test_force_apply_writes_where_all_is_in_place(namespace: Namespace) -> None:
    succeed(namespace, *TPROXY)
    before = standing(namespace)
    forced = traced(namespace, ROUTING, *TPROXY, "--force-apply")
    assert forced.code == 0
    assert sorted(commits(forced)) == sorted(EVERY_TABLE)
    assert standing(namespace) == before


def test_force_apply_is_no_reconcile(namespace: Namespace) -> None:
    succeed(namespace, *REDIRECT)
    before = standing(namespace)
    assert "use --reconcile to update them" in refuse(namespace, *TPROXY, "--force-apply")
    assert standing(namespace) == before


# What somebody may have done to the rules of article-tproxy: an iptables command for either family or an ip command,
# and what the message must say.
DRIFTS = {
    "a rule gone": (
        "-t nat -D ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "nat ISTIO_OUTPUT rule 4 missing: -m owner --uid-owner 1337 -j RETURN",
    ),
    "a rule more": (
        "-t nat -I ISTIO_OUTPUT 1 -p tcp -m tcp --dport 443 -j RETURN",
        "nat ISTIO_OUTPUT rule 1 unexpected: -p tcp -m tcp --dport 443 -j RETURN",
    ),
    "a rule by an extension that we don't know": (
        "-t nat -A ISTIO_OUTPUT -m limit --limit 1/sec -j RETURN", "nat ISTIO_OUTPUT rule 11 unexpected: -m limit"
    ),
    "a rule twice": (
        "-t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
        "nat ISTIO_REDIRECT rule 2 unexpected: -p tcp -j REDIRECT --to-ports 15001",
    ),
    "another port": (
        "-t nat -R ISTIO_REDIRECT 1 -p tcp -j REDIRECT --to-ports 15002",
        "nat ISTIO_REDIRECT rule 1 missing: -p tcp -j REDIRECT --to-ports 15001",
    ),
    "a jump gone": (
        "-t mangle -D PREROUTING -p tcp -j ISTIO_INBOUND", "mangle PREROUTING rule 1 missing: -p tcp -j ISTIO_INBOUND"
    ),
    "a jump twice": ("-t nat -A OUTPUT -j ISTIO_OUTPUT", "nat OUTPUT rule 2 unexpected: -j ISTIO_OUTPUT"),
    "a chain empty": ("-t mangle -F ISTIO_DIVERT", "mangle ISTIO_DIVERT rule 1 missing: -j MARK --set-xmark"),
    "an Istio chain that was not planned": ("-t nat -N ISTIO_DROP", "nat chain ISTIO_DROP: unexpected"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("drift", DRIFTS)
def test_drift(namespace: Namespace, drift: str, family: Family) -> None:
    """Said and left alone; with --reconcile mended, in the one table that drifted."""
    command, answer = DRIFTS[drift]
    succeed(namespace, *TPROXY)
    namespace.run(IPTABLES[family], *shlex.split(command))
    before = standing(namespace)
    message = refuse(namespace, *TPROXY)
    assert f"{family} {answer}" in message
    assert "use --reconcile to update them" in message
    assert standing(namespace) == before
    mended = traced(namespace, ROUTING, *TPROXY, "--reconcile")
    assert mended.code == 0, mended.log
    assert commits(mended) == [f"{family} {shlex.split(command)[1]}"]
    assert in_place(namespace, "article-tproxy")


def test_a_rule_in_another_place(namespace: Namespace) -> None:
    succeed(namespace, *TPROXY)
    rule = ("-m", "owner", "--uid-owner", "1337", "-j", "RETURN")
    namespace.run("iptables-legacy", "-t", "nat", "-D", "ISTIO_OUTPUT", *rule)
    namespace.run("iptables-legacy", "-t", "nat", "-A", "ISTIO_OUTPUT", *rule)
    message = refuse(namespace, *TPROXY)
    assert "ipv4 nat ISTIO_OUTPUT rule 4 misplaced: -m owner --uid-owner 1337 -j RETURN" in message
    succeed(namespace, *TPROXY, "--reconcile")
    assert in_place(namespace, "article-tproxy")


@pytest.mark.parametrize(
    "entry",
    [
        "-4 rule del fwmark 1337 lookup 133",
        "-6 rule del fwmark 1337 lookup 133",
        "-4 route del local default dev lo table 133",
        "-6 route del local default dev lo table 133",
        "-6 addr del ::6/128 dev lo",
    ],
)
def test_routing_that_is_gone(namespace: Namespace, entry: str) -> None:
    succeed(namespace, *TPROXY)
    whole = routing(namespace)
    namespace.run("ip", *entry.split())
    before = standing(namespace)
    assert f"missing: ip {entry.replace('del', 'add', 1)}" in refuse(namespace, *TPROXY)
    assert standing(namespace) == before
    mended = traced(namespace, ROUTING, *TPROXY, "--reconcile")
    assert mended.code == 0, mended.log
    assert not commits(mended)
    assert routing(namespace) == whole


def test_routing_that_stands_already_is_left_alone(namespace: Namespace) -> None:
    entries = ("-4 rule add fwmark 1337 lookup 133", "-6 addr add ::6/128 dev lo")
    for entry in entries:
        namespace.run("ip", *entry.split())
    succeed(namespace, *TPROXY)
    rules = routing(namespace).splitlines()
    assert len([line for line in rules if "fwmark 0x539 lookup 133" in line]) == 2


SWITCHES = [
    ("article-ipv6", "article-tproxy"),
    ("article-tproxy", "article-ipv6"),
    ("tproxy-mark-and-table", "article-tproxy"),
    ("article", "kubevirt-all"),
    ("owners", "dns-all"),
    ("dns-all", "drop-invalid-tproxy"),
]


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_reconciling_other_options(namespace: Namespace, before: str, after: str) -> None:
    """To the new plan and nothing but it, each table in one write at most, with other programs' rules in between."""
    with Namespace() as fresh:
        empty = routing(fresh)
        succeed(fresh, *argv(after), *with_ipv6(after))
        desired = standing(fresh)
    succeed(namespace, *argv(before), *with_ipv6(before))
    refuse(namespace, *argv(after), *with_ipv6(after))
    run = traced(namespace, ROUTING, *argv(after), *with_ipv6(after), "--reconcile")
    assert run.code == 0, run.log
    assert len(commits(run)) == len(set(commits(run)))
    rules, routes = standing(namespace)
    assert routes == desired[1]
    for family in FAMILIES:
        held = {table: text for table, text in rules[family].items() if "-A" in text or ":ISTIO" in text}
        assert held == desired[0][family]
    succeed(namespace, "--cleanup-only")
    assert routing(namespace) == empty


def with_ipv6(name: str) -> list[str]:
    """A family that the plan leaves out is left alone; here both are in it."""
    return [] if "--enable-ipv6" in CASES[name] else ["--enable-ipv6"]


def test_rules_of_others_stay_in_their_order(namespace: Namespace) -> None:
    plant(namespace)
    before = {family: canaries(namespace, family) for family in FAMILIES}
    exclude = ["-c", "eth9,eth8", "-k", "eth9"]
    for run in (TPROXY, [*REDIRECT, *exclude, "--reconcile"], [*TPROXY, *exclude, "--reconcile"], ["--cleanup-only"]):
        succeed(namespace, *run)
        assert {family: canaries(namespace, family) for family in FAMILIES} == before


def test_rules_of_others_before_and_behind_ours(namespace: Namespace) -> None:
    """Ours keep their place between rules that others have put before and behind them."""
    succeed(namespace, *REDIRECT)
    for rule in ("-I OUTPUT 1 -d 192.0.2.1 -j ACCEPT", "-A OUTPUT -d 192.0.2.2 -j ACCEPT"):
        namespace.run("iptables-legacy", "-t", "nat", *rule.split())
    assert "in place" in succeed(namespace, *REDIRECT)
    succeed(namespace, *REDIRECT, "-c", "eth1", "--reconcile")
    order = [line for line in saved(namespace, IPV4)["nat"].splitlines() if line.startswith("-A OUTPUT")]
    assert order == [
        "-A OUTPUT -d 192.0.2.1/32 -j ACCEPT",
        "-A OUTPUT -o eth1 -j RETURN",
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-A OUTPUT -d 192.0.2.2/32 -j ACCEPT",
    ]


@pytest.mark.parametrize("name", ["exclude-interfaces", "kubevirt-all", "drop-invalid"])
def test_in_place_among_rules_of_others(namespace: Namespace, name: str) -> None:
    plant(namespace)
    succeed(namespace, *argv(name))
    before = all_saved(namespace)
    assert "in place, nothing written" in succeed(namespace, *argv(name))
    assert all_saved(namespace) == before


def test_ipv6_that_is_not_asked_for_is_not_touched(namespace: Namespace) -> None:
    succeed(namespace, *argv("article"))
    assert existing(namespace, IPV6) == set()
    plant(namespace, IPV6)
    before = canaries(namespace, IPV6)
    run = traced(namespace, "setsockopt,getsockopt", *argv("article"), "-d", "1", "--reconcile")
    assert run.code == 0
    # Read they are: a warning tells of Istio rules that the options leave out.
    assert not run.having("setsockopt", "SOL_IPV6")
    assert canaries(namespace, IPV6) == before


def test_ipv6_rules_of_ours_stay_where_ipv6_is_not_asked_for(namespace: Namespace) -> None:
    succeed(namespace, *REDIRECT)
    before = saved(namespace, IPV6)
    succeed(namespace, *argv("article"), "--no-enable-ipv6")
    succeed(namespace, *argv("article"), "-d", "1", "--no-enable-ipv6", "--reconcile")
    assert saved(namespace, IPV6) == before


def test_no_table_comes_into_being_that_nothing_needs(namespace: Namespace) -> None:
    succeed(namespace, *argv("article"))
    assert existing(namespace, IPV4) == {"nat"}
    succeed(namespace, "--cleanup-only")
    assert existing(namespace, IPV4) == {"nat"}
    with Namespace() as fresh:
        succeed(fresh, "--cleanup-only")
        assert existing(fresh, IPV4) == existing(fresh, IPV6) == set()
