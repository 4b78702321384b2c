"""Whatever ends a run on the way: everything is as it was before. Faults and signals come from strace, at each call."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from integration.kit.canaries import canaries, plant
from integration.kit.namespace import Namespace
from integration.kit.program import all_saved, routing, succeed
from integration.kit.tracing import Traced, commits, traced
from istio_init.model.rules import FAMILIES
from tests.planning.cases import argv

CALLS = "setsockopt,sendto,sendmsg,write"
REDIRECT, TPROXY = argv("article-ipv6"), argv("article-tproxy")
Picture = tuple[dict[tuple[str, str], str], str, list[list[str]]]
WRITES = ("SO_SET_", "RTM_NEW", "RTM_DEL")
EXCLUDED = ["-c", "eth9", "-k", "eth9"]

# The state before, and what is run.
SCENARIOS: dict[str, tuple[list[str] | None, list[str]]] = {
    "from nothing": (None, [*TPROXY, *EXCLUDED]),
    "to TPROXY": ([*REDIRECT, *EXCLUDED], [*TPROXY, "--reconcile"]),
    "from TPROXY": ([*TPROXY, *EXCLUDED], [*REDIRECT, *EXCLUDED, "--reconcile"]),
    "to nothing": ([*TPROXY, *EXCLUDED], ["--cleanup-only", "--enable-ipv6"]),
}


def prepare(namespace: Namespace, scenario: str) -> None:
    before, _ = SCENARIOS[scenario]
    plant(namespace)
    if before:
        succeed(namespace, *before)


def picture(namespace: Namespace) -> Picture:
    """All that must be as it was: tables (those that are empty don't count), routing, others' rules with counters."""
    tables: dict[tuple[str, str], str] = {
        (family, name): text
        for family, saved in all_saved(namespace).items()
        for name, text in saved.items()
        if "-A" in text or ":ISTIO" in text
    }
    return tables, routing(namespace), [canaries(namespace, family) for family in FAMILIES]


def clean_run(scenario: str) -> Traced:
    """What a run in which nothing fails does."""
    with Namespace() as namespace:
        prepare(namespace, scenario)
        run = traced(namespace, CALLS, *SCENARIOS[scenario][1])
    assert run.code == 0, run.log
    return run


def each_call(run: Traced, *words: str) -> Iterator[tuple[str, int]]:
    """The system calls whose line has one of the words, by name and number (among all of the name)."""
    counts: Counter[str] = Counter()
    for call in run.calls:
        name = call.split()[1].partition("(")[0]
        counts[name] += 1
        if any(word in call for word in words):
            yield name, counts[name]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_refusal(namespace: Namespace, scenario: str) -> None:
    """The kernel refuses one write of a table or of routing: the run fails, and has done nothing."""
    whole = clean_run(scenario)
    prepare(namespace, scenario)
    before = picture(namespace)
    # What gives counters back comes after the commit: integration/kernel/test_unknown_outcomes.py has it.
    for name, number in each_call(whole, "SO_SET_REPLACE", "RTM_NEW", "RTM_DEL"):
        run = traced(namespace, CALLS, *SCENARIOS[scenario][1], inject=f"{name}:error=EPERM:when={number}")
        (refused,) = run.having("(INJECTED)")
        assert run.code == 1, f"{refused}\n{run.log}"
        assert "Traceback" not in run.log
        assert "not everything could be put back" not in run.log
        assert "Operation not permitted" in run.log.splitlines()[-1]
        assert picture(namespace) == before, f"{refused}\n{run.log}"


def test_a_refusal_while_putting_back(namespace: Namespace) -> None:
    """What can't be put back is said, the rest is put back all the same, and the first error stays the last word."""
    whole = clean_run("from nothing")
    plant(namespace)
    tables, routes, _ = picture(namespace)
    last = list(each_call(whole, "SET_REPLACE"))[-1][1]
    fault = f"setsockopt:error=ENOMEM:when={last}..{last + 1}"
    run = traced(namespace, CALLS, *SCENARIOS["from nothing"][1], inject=fault)
    assert run.code == 1
    assert "the previous state could not be restored completely: ipv6 nat: " in run.log
    message = run.log.splitlines()[-1]
    assert "ipv4 nat: can't commit the table: Cannot allocate memory" in message
    assert "the namespace has neither the previous state nor the plan: run again with --reconcile" in message
    left, routes_left, _ = picture(namespace)
    assert routes_left == routes
    assert {name for name in left if left[name] != tables.get(name)} == {("ipv6", "nat")}


@pytest.mark.parametrize("command", [["--cleanup-only"], [*REDIRECT, "--reconcile"]], ids=["cleanup", "reconcile"])
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rules_return_to_their_place_among_other_programs_rules(backend: str, command: list[str]) -> None:
    """A jump behind the ACCEPT of another program captures nothing, and no later run would notice."""
    choice = ["--force-iptables-binary", backend]
    with Namespace() as namespace:
        surround(namespace, backend)
        whole = traced(namespace, CALLS, *choice, *command)
        assert whole.code == 0, whole.log
    ended = 0
    for name, number in each_call(whole, *WRITES, "NFNL_MSG_BATCH_BEGIN", "write("):
        with Namespace() as namespace:
            before = surround(namespace, backend)
            run = traced(namespace, CALLS, *choice, *command, inject=f"{name}:signal=SIGTERM:when={number}")
            if run.code:
                assert exact(namespace, backend) == before, run.log
                assert run.log.splitlines()[-1].endswith(("ended by signal 15", "the namespace is as before"))
                ended += 1
    assert ended > 1


def surround(namespace: Namespace, backend: str) -> tuple[list[str], str]:
    """TPROXY, with other programs' rules before and behind the jumps; returns what then is there, in its order."""
    succeed(namespace, "--force-iptables-binary", backend, *TPROXY)
    for tool in (f"iptables-{backend}", f"ip6tables-{backend}"):
        for table, chain in (("nat", "OUTPUT"), ("mangle", "PREROUTING"), ("raw", "OUTPUT")):
            namespace.run(tool, "-w", "-t", table, "-I", chain, "-p", "udp", "-j", "RETURN")
            namespace.run(tool, "-w", "-t", table, "-A", chain, "-p", "tcp", "-j", "ACCEPT")
    namespace.run("ip", "rule", "add", "fwmark", "77", "lookup", "77")
    return exact(namespace, backend)


def exact(namespace: Namespace, backend: str) -> tuple[list[str], str]:
    """Each table in its exact order, with counters of zero, and the routing."""
    tools = [f"iptables-{backend}-save", f"ip6tables-{backend}-save"]
    return [strip_comments(namespace.run(tool)) for tool in tools], routing(namespace)


def strip_comments(text: str) -> str:
    """Save text without its comments, which have the time, and with counters of zero."""
    lines = (re.sub(r"\[\d+:\d+\]", "[0:0]", line) for line in text.splitlines() if not line.startswith("#"))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("signal", ["SIGINT", "SIGHUP"])
def test_other_signals_end_a_run_as_sigterm_does(namespace: Namespace, signal: str) -> None:
    empty = picture(namespace)
    run = traced(namespace, CALLS, *TPROXY, inject=f"setsockopt:signal={signal}:when=8")
    assert run.code == 1
    assert "ended by signal" in run.log.splitlines()[-1]
    assert picture(namespace) == empty


@pytest.mark.parametrize("scenario", ["from nothing", "from TPROXY", "to nothing"])
def test_a_signal(namespace: Namespace, scenario: str) -> None:
    """At any moment: the run has ended well and done everything, or it says so and has done nothing."""
    whole = clean_run(scenario)
    prepare(namespace, scenario)
    before = picture(namespace)
    done = with_everything_done(scenario)
    ends = Counter[int]()
    for name, number in each_call(whole, *WRITES, "write("):
        run = traced(namespace, CALLS, *SCENARIOS[scenario][1], inject=f"{name}:signal=SIGTERM:when={number}")
        after = picture(namespace)
        ends[run.code] += 1
        assert "Traceback" not in run.log
        if run.code == 0:
            assert after[:2] == done[:2], run.log
            restore(namespace, scenario)
        else:
            assert run.code == 1
            assert "ended by signal" in run.log.splitlines()[-1]
            assert after == before, run.log
    assert ends[1] > len(commits(whole))


def with_everything_done(scenario: str) -> Picture:
    with Namespace() as namespace:
        prepare(namespace, scenario)
        succeed(namespace, *SCENARIOS[scenario][1])
        return picture(namespace)


def restore(namespace: Namespace, scenario: str) -> None:
    """Back to what stood before the scenario's run."""
    succeed(namespace, "--cleanup-only")
    if before := SCENARIOS[scenario][0]:
        succeed(namespace, *before)


@pytest.mark.parametrize("command", [REDIRECT, TPROXY])
def test_a_kernel_without_ipv6(namespace: Namespace, command: list[str]) -> None:
    """Asked for, it is an error, and nothing is applied in IPv4 either. Not asked for, it is never spoken of."""
    before = picture(namespace)
    whole = traced(namespace, "socket", *command)
    for name, number in each_call(whole, "AF_INET6"):
        with Namespace() as without:
            run = traced(without, "socket", *command, inject=f"{name}:error=EAFNOSUPPORT:when={number}")
            assert run.code == 1
            assert "ipv6" in run.log.splitlines()[-1]
            assert "Traceback" not in run.log
            assert picture(without)[:2] == before[:2]
    with Namespace() as other:
        alone = traced(other, "socket", *argv("article"))
    assert alone.code == 0
    assert not alone.having("AF_INET6")


def test_options_of_a_socket_that_a_sandbox_forbids_are_done_without(namespace: Namespace) -> None:
    whole = clean_run("from nothing")
    for name, number in list(each_call(whole, "SOL_NETLINK"))[:3]:
        run = traced(namespace, CALLS, *TPROXY, "--force-apply", inject=f"{name}:error=EPERM:when={number}")
        assert run.having("(INJECTED)")
        assert run.code == 0, run.log
