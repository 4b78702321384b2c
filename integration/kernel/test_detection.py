"""Which backend a run chooses, why, and that neither choosing nor cleaning up leaves a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.kit.backends import BACKENDS, rules
from integration.kit.capabilities import without
from integration.kit.namespace import Namespace
from integration.kit.program import completed, existing, refuse, routing, succeed
from integration.kit.tracing import traced
from istio_init.kernel.probe import detection
from istio_init.kernel.xtables import table_names
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from tests.planning.cases import argv

if TYPE_CHECKING:
    from istio_init.model.rules import Family

TPROXY = [*argv("article-tproxy"), "-t", "77", "-r", "88"]
A_RULE = ["-t", "filter", "-A", "INPUT", "-s", "192.0.2.1", "-j", "DROP"]


def chosen(namespace: Namespace, *words: str) -> str:
    """The one line that says what a run chose and why."""
    log = succeed(namespace, *argv("article"), *words)
    [line] = [line for line in log.splitlines() if "backend: " in line]
    return line.partition("backend: ")[2]


def test_an_empty_namespace_takes_legacy_tables(namespace: Namespace) -> None:
    assert chosen(namespace) == "legacy (there are no rules yet, and the legacy tables work)"
    assert set(rules(namespace, "legacy")) == {"ipv4 nat"}


def test_rules_of_iptables_nft_draw_ours_there(namespace: Namespace) -> None:
    namespace.run("iptables-nft", *A_RULE)
    assert chosen(namespace) == "nft (the iptables-nft tables have rules, the legacy tables have none)"
    assert not rules(namespace, "legacy")
    assert "ISTIO_OUTPUT" in rules(namespace, "nft")["ipv4 nat"]


def test_rules_of_either_family_count(namespace: Namespace) -> None:
    namespace.run("ip6tables-nft", *[word.replace("192.0.2.1", "2001:db8::1") for word in A_RULE])
    assert chosen(namespace).startswith("nft ")


def test_tables_of_iptables_nft_without_a_rule_do_not_count(namespace: Namespace) -> None:
    namespace.run("iptables-nft", *A_RULE)
    namespace.run("iptables-nft", "-F")
    assert "nat" not in namespace.run("nft", "list", "tables")
    assert "filter" in namespace.run("nft", "list", "tables")
    assert chosen(namespace).startswith("legacy ")


def test_legacy_tables_without_a_rule_do_not_count(namespace: Namespace) -> None:
    namespace.run("iptables-legacy", "-t", "nat", "-L")
    namespace.run("iptables-nft", *A_RULE)
    assert chosen(namespace).startswith("nft ")


def test_rules_in_both_mean_legacy(namespace: Namespace) -> None:
    """As Istio has it."""
    namespace.run("iptables-nft", *A_RULE)
    namespace.run("iptables-legacy", *A_RULE)
    assert chosen(namespace) == "legacy (the legacy tables have rules)"


def test_ours_stay_where_they_are(namespace: Namespace) -> None:
    """Other programs' rules in the legacy tables come later: they are no reason to have Istio rules twice."""
    succeed(namespace, *argv("article"), *BACKENDS["nft"])
    namespace.run("iptables-legacy", *A_RULE)
    assert chosen(namespace) == "nft (the iptables-nft tables have Istio rules)"
    assert set(rules(namespace, "legacy")) == {"ipv4 filter"}


@pytest.mark.parametrize(("backend", "flags"), BACKENDS.items())
def test_what_is_asked_for_is_taken(namespace: Namespace, backend: str, flags: list[str]) -> None:
    namespace.run("iptables-nft", *A_RULE)
    namespace.run("iptables-legacy", *A_RULE)
    assert chosen(namespace, *flags) == f"{backend} ({' '.join(flags)})"
    assert any("ISTIO" in text or "istio" in text for text in rules(namespace, backend).values())


@pytest.mark.parametrize("families", [(IPV4,), FAMILIES])
def test_looking_leaves_no_trace(namespace: Namespace, families: tuple[Family, ...]) -> None:
    def look() -> str:
        return detection.decide(detection.tables(), families)[0]

    assert namespace.inside(look) == "legacy"
    assert not any(existing(namespace, family) for family in FAMILIES)
    assert namespace.run("nft", "list", "tables") == ""


def test_looking_takes_no_capability_where_nothing_stands(namespace: Namespace) -> None:
    """What is missing is said by the one who writes."""

    def look() -> detection.Tables:
        without("net_admin", "net_raw")
        return detection.tables()

    assert namespace.forked(look) == detection.Tables((), None, native=False)


@pytest.mark.parametrize("missing", [FAMILIES, (IPV6,)])
def test_a_kernel_without_legacy_tables(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, missing: tuple[Family, ...]
) -> None:
    """Its sign is the file that is not there; this kernel has it, so another name stands for such a kernel."""
    for family in missing:
        monkeypatch.setitem(table_names.NAMES, family, "/proc/thread-self/net/none-such")
    outcome = namespace.inside(detection.tables)
    backend, why = detection.decide(outcome, FAMILIES)
    assert backend == "nft"
    assert why == f"this kernel has no legacy tables for {' and '.join(missing)}, and nftables works"
    neither = detection.decide(outcome.replace(nft=None), FAMILIES)
    assert neither == ("legacy", "neither the legacy tables nor nftables seem to work")
    if IPV4 not in missing:
        assert detection.decide(outcome, (IPV4,))[0] == "legacy"


@pytest.mark.parametrize(("backend", "flags"), BACKENDS.items())
def test_cleaning_up_finds_what_stands_by_itself(namespace: Namespace, backend: str, flags: list[str]) -> None:
    """Wherever it is and whatever the marks are, without a flag."""
    empty = routing(namespace)
    succeed(namespace, *TPROXY, *flags)
    assert rules(namespace, backend)
    assert "cleaned up" in succeed(namespace, "--cleanup-only")
    assert not rules(namespace, backend)
    assert routing(namespace) == empty
    assert "nothing to clean up" in succeed(namespace, "--cleanup-only")


def test_cleaning_up_takes_from_all_what_all_hold(namespace: Namespace) -> None:
    plain = {}
    for backend, flags in BACKENDS.items():
        with Namespace() as other:
            succeed(other, *TPROXY, *flags)
            plain[backend] = [other.run("iptables-legacy-save"), other.run("nft", "list", "ruleset")]
    succeed(namespace, *TPROXY, *BACKENDS["legacy"])
    namespace.run("iptables-nft-restore", text=plain["legacy"][0])
    namespace.run("nft", "-f", "-", text=plain["native"][1])
    assert all(rules(namespace, backend) for backend in BACKENDS)
    # With the flags: what iptables-nft-restore has loaded bears no signature.
    succeed(namespace, *TPROXY, "--cleanup-only")
    assert not any(rules(namespace, backend) for backend in BACKENDS)


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
def test_moving_from_one_to_another(namespace: Namespace, first: str, second: str) -> None:
    """Istio rules in two places would take packets twice: an error, unless they may be moved."""
    if first == second:
        return
    succeed(namespace, *TPROXY, *BACKENDS[first])
    standing, routes = rules(namespace, first), routing(namespace)
    message = refuse(namespace, *TPROXY, *BACKENDS[second])
    assert f"Istio rules also exist in the {first} tables" in message
    assert rules(namespace, first) == standing
    assert not rules(namespace, second)
    succeed(namespace, *TPROXY, *BACKENDS[second], "--reconcile")
    assert not rules(namespace, first)
    assert rules(namespace, second)
    assert routing(namespace) == routes


@pytest.mark.parametrize("flags", [["--native-nftables"], ["--force-iptables-binary", "nft"]])
def test_the_second_engine_writes_legacy_tables_alone(namespace: Namespace, flags: list[str]) -> None:
    message = refuse(namespace, *argv("article"), *flags, "--iptables-engine", "python-iptables")
    assert "--iptables-engine python-iptables: writes legacy tables only" in message


def test_a_dry_run_chooses_nothing_and_asks_nobody(namespace: Namespace) -> None:
    run = traced(namespace, "socket", *argv("article-ipv6"), "--dry-run")
    assert run.code == 0
    assert not run.calls
    assert completed(namespace, *argv("article-ipv6"), "--dry-run").stderr == ""


@pytest.mark.parametrize("fault", [*(f"{call}:when=1" for call in ("socket", "connect", "sendto")), "recvfrom:when=2"])
def test_a_lookup_that_fails_once_does_not_hide_rules(namespace: Namespace, fault: str) -> None:
    """A move that took nftables for missing would leave the old rules beside the new ones."""
    succeed(namespace, *argv("article"), *BACKENDS["native"])
    call, _, when = fault.partition(":")
    move = (*argv("article"), *BACKENDS["legacy"], "--reconcile")
    run = traced(namespace, call, *move, inject=f"{call}:error=EPERM:{when}")
    assert run.having("INJECTED")
    assert (run.code == 0) == bool(rules(namespace, "legacy")) == (not rules(namespace, "native"))


def test_names_of_tables_that_a_sandbox_hides_are_not_none(namespace: Namespace) -> None:
    succeed(namespace, *argv("article"), *BACKENDS["legacy"])
    move = (*argv("article"), *BACKENDS["nft"], "--reconcile")
    path = table_names.NAMES[IPV4]
    prefix = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", path, "-e", "inject=openat:error=EPERM")
    done = completed(namespace, *move, prefix=prefix)
    assert done.returncode == 1
    assert f"{path}: the tables can't be listed: Operation not permitted" in done.stderr
    assert not rules(namespace, "nft")
