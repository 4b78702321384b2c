"""A move of the rules between backends is one transaction: refused, ended or killed at any write."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from integration.kit.backends import BACKENDS, rules
from integration.kit.namespace import Namespace
from integration.kit.program import refuse, routing, succeed
from integration.kit.settling import settled
from integration.kit.tracing import traced
from integration.runner.test_rollback import each_call
from tests.planning.cases import argv

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = "setsockopt,sendto,sendmsg"
WRITES = ("SO_SET_REPLACE", "RTM_NEW", "RTM_DEL", "NFNL_MSG_BATCH_BEGIN")
PLANS = {"redirect": argv("article-ipv6"), "tproxy": argv("article-tproxy")}
PAIRS = list(permutations(BACKENDS, 2))
# One of every kind: with one commit a table or one for all, from the other backend's tables and into them.
SAMPLE = [("legacy", "nft"), ("native", "legacy")]


def picture(namespace: Namespace) -> tuple[dict[str, str], str]:
    """Every backend's rules, and the routing."""
    settled(namespace)
    result = {f"{name} {place}": text for name in BACKENDS for place, text in rules(namespace, name).items()}
    return result, routing(namespace)


def prepare(namespace: Namespace, backend: str, plan: str) -> tuple[dict[str, str], str]:
    """The plan in a backend's tables; with other programs' rules around the jumps where there can be any."""
    succeed(namespace, *BACKENDS[backend], *PLANS[plan])
    if backend != "native":
        for family in ("iptables", "ip6tables"):
            namespace.run(f"{family}-{backend}", "-w", "-t", "nat", "-I", "OUTPUT", "-p", "udp", "-j", "RETURN")
            namespace.run(f"{family}-{backend}", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    return picture(namespace)


def writes(pair: tuple[str, str], plan: str) -> Iterator[tuple[str, int]]:
    """The system calls by which a move writes tables and routing."""
    with Namespace() as namespace:
        prepare(namespace, pair[0], plan)
        run = traced(namespace, CALLS, *BACKENDS[pair[1]], *PLANS[plan], "--reconcile")
    assert run.code == 0, run.log
    yield from each_call(run, *WRITES)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_move_leaves_what_a_plain_run_would(namespace: Namespace, pair: tuple[str, str], plan: str) -> None:
    old, new = pair
    prepare(namespace, old, plan)
    assert "reconcile" in refuse(namespace, *BACKENDS[new], *PLANS[plan])
    succeed(namespace, *BACKENDS[new], *PLANS[plan], "--reconcile")
    after, routes = picture(namespace)
    assert not [text for place, text in after.items() if place.startswith(old) and "istio" in text.lower()]
    with Namespace() as other:
        succeed(other, *BACKENDS[new], *PLANS[plan])
        direct, direct_routes = picture(other)
    assert {place: text for place, text in after.items() if place.startswith(new)} == direct
    assert routes == direct_routes
    assert "in place" in succeed(namespace, *BACKENDS[new], *PLANS[plan])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pair", SAMPLE, ids="-".join)
@pytest.mark.parametrize("fault", ["error=ENOMEM", "signal=SIGTERM"])
def test_an_ended_move_restores_everything(pair: tuple[str, str], plan: str, fault: str) -> None:
    """Rules in their order among other programs' rules, in both backends, and the routing; the last line says so."""
    ended = 0
    for name, number in writes(pair, plan):
        with Namespace() as namespace:
            before = prepare(namespace, pair[0], plan)
            line = f"{name}:{fault}:when={number}"
            run = traced(namespace, CALLS, *BACKENDS[pair[1]], *PLANS[plan], "--reconcile", inject=line)
            if run.code == 0:  # a read of nftables, or a batch, that was tried again
                assert "in place" in succeed(namespace, *BACKENDS[pair[1]], *PLANS[plan])
                continue
            ended += 1
            assert run.code == 1, run.log
            assert run.log.splitlines()[-1].endswith("the namespace is as before"), run.log
            assert picture(namespace) == before, f"{line}\n{run.log}"
    assert ended > 1


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pair", SAMPLE, ids="-".join)
def test_a_plain_run_finishes_a_killed_move(pair: tuple[str, str], plan: str) -> None:
    """Or refuses, where the killed run had not written a rule; never is anything of the move left."""
    old, new = pair
    with Namespace() as namespace:
        prepare(namespace, old, plan)
        succeed(namespace, *BACKENDS[new], *PLANS[plan], "--reconcile")
        desired = picture(namespace)
    finished = 0
    for name, number in writes(pair, plan):
        with Namespace() as namespace:
            before, _ = prepare(namespace, old, plan)
            line = f"{name}:signal=SIGKILL:when={number}"
            run = traced(namespace, CALLS, *BACKENDS[new], *PLANS[plan], "--reconcile", inject=line)
            assert run.code == -9
            if picture(namespace)[0] == before:
                refuse(namespace, *BACKENDS[new], *PLANS[plan])
                continue
            log = succeed(namespace, *BACKENDS[new], *PLANS[plan])
            assert picture(namespace) == desired, f"{line}\n{log}"
            finished += 1
    assert finished > 1


def test_a_cleanup_of_two_backends_is_one_transaction() -> None:
    """Routing goes once, after all rules; refused at the second backend, everything is back."""
    with Namespace() as namespace:
        succeed(namespace, *BACKENDS["nft"], *PLANS["tproxy"])
        saved = {tool: namespace.run(f"{tool}-nft-save") for tool in ("iptables", "ip6tables")}
    with Namespace() as namespace:
        in_both(namespace, saved)
        whole = traced(namespace, CALLS, "--cleanup-only")
        assert whole.code == 0, whole.log
        assert "istio" not in str(picture(namespace)[0]).lower()
    faults = 0
    for name, number in each_call(whole, *WRITES):
        with Namespace() as namespace:
            before = in_both(namespace, saved)
            run = traced(namespace, CALLS, "--cleanup-only", inject=f"{name}:error=ENOMEM:when={number}")
            if run.code == 0:
                assert "istio" not in str(picture(namespace)[0]).lower()
            else:
                assert run.log.splitlines()[-1].endswith("the namespace is as before"), run.log
                assert picture(namespace) == before, run.log
                faults += 1
    assert faults > 5


def in_both(namespace: Namespace, saved: dict[str, str]) -> tuple[dict[str, str], str]:
    """TPROXY's rules in the legacy tables and in iptables-nft's."""
    succeed(namespace, *BACKENDS["legacy"], *PLANS["tproxy"])
    for tool, text in saved.items():
        namespace.run(f"{tool}-nft-restore", text=text)
    return picture(namespace)
