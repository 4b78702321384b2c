"""The matrix of injected faults: every system call of a run, each kind of fault, each scenario; and what came of it."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import NamedTuple

from integration.kit.backends import BACKENDS, rules
from integration.kit.namespace import Namespace
from integration.kit.program import completed, routing, succeed
from integration.kit.settling import settled
from integration.kit.tracing import Traced, traced
from tests.planning.cases import argv

PLANS = {"REDIRECT": argv("article-ipv6"), "TPROXY": argv("article-tproxy")}
# What a run asks of the kernel, and where it logs; not what Python itself does to start.
CALLS = "socket,bind,connect,setsockopt,getsockopt,sendto,sendmsg,recvfrom,recvmsg,openat,flock,write"
FAULTS = ("error=ENOMEM", "error=EINTR", "error=EPERM", "signal=SIGTERM", "signal=SIGKILL")
STATES = ("as before", "the plan", "neither")

Snapshot = tuple[dict[str, str], str]


class Scenario(NamedTuple):
    """Runs that come first, and the run whose system calls fail."""

    name: str
    before: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]


class Result(NamedTuple):
    """How a run with a fault ended, the state of the namespace then, and what is wrong with that (empty: nothing)."""

    code: int
    state: str
    problem: str


def scenarios() -> tuple[Scenario, ...]:
    """Applying, reconciling and cleaning up in each backend, and every move between two."""
    result = []
    redirect, tproxy = PLANS.values()
    for name, flags in BACKENDS.items():
        result += [Scenario(f"{name}: apply {plan}", (), (*flags, *words)) for plan, words in PLANS.items()]
        result += [
            Scenario(f"{name}: REDIRECT to TPROXY", ((*flags, *redirect),), (*flags, *tproxy, "--reconcile")),
            Scenario(f"{name}: TPROXY to REDIRECT", ((*flags, *tproxy),), (*flags, *redirect, "--reconcile")),
            Scenario(f"{name}: clean up", ((*flags, *tproxy),), (*flags, "--cleanup-only")),
        ]
    for old, new in permutations(BACKENDS, 2):
        for plan, words in PLANS.items():
            move = (*BACKENDS[new], *words, "--reconcile")
            result.append(Scenario(f"{old} to {new}: {plan}", ((*BACKENDS[old], *words),), move))
    return tuple(result)


def snapshot(namespace: Namespace) -> Snapshot:
    """Every backend's rules, and the routing."""
    settled(namespace)
    return {f"{name} {place}": text for name in BACKENDS for place, text in rules(namespace, name).items()}, routing(
        namespace
    )


def prepare(namespace: Namespace, scenario: Scenario) -> Snapshot:
    """Make the runs that come first; returns the state before."""
    namespace.run("ip", "link", "set", "lo", "up")
    for words in scenario.before:
        succeed(namespace, *words)
    return snapshot(namespace)


class Matrix:
    """One scenario's faults; `done` is the state that its run leads to."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        with Namespace() as namespace:
            prepare(namespace, scenario)
            whole = traced(namespace, CALLS, *scenario.run)
            assert whole.code == 0, whole.log
            self.done = snapshot(namespace)
        self.calls = tuple(_calls(whole))

    def result(self, call: str, number: int, fault: str) -> Result:
        """What comes of a fault in one system call."""
        with Namespace() as namespace:
            before = prepare(namespace, self.scenario)
            run = traced(namespace, CALLS, *self.scenario.run, inject=f"{call}:{fault}:when={number}")
            now = snapshot(namespace)
            state = STATES[0] if now == before else STATES[1] if now == self.done else STATES[2]
            return Result(run.code, state, self._problem(namespace, run, state))

    def _problem(self, namespace: Namespace, run: Traced, state: str) -> str:
        if "Traceback" in run.log:
            return "a traceback"
        if run.code == -9:
            return self._unfinished(namespace, state)
        last = run.log.splitlines()[-1] if run.log else ""
        if run.code == 0 and state != STATES[1]:
            return f"exit 0, and the state is {state}"
        if run.code and state == STATES[2] and "neither the previous state nor the plan" not in last:
            return f"exit {run.code}, and the last line does not say that the state is {state}: {last}"
        if run.code and state == STATES[1] and "has the plan" not in last and self.done != ({}, ""):
            return f"exit {run.code}, and the last line does not say that the state is {state}: {last}"
        return ""

    def _unfinished(self, namespace: Namespace, state: str) -> str:
        """A killed run's work is finished by the next plain run; it may refuse only where nothing was begun."""
        plain = tuple(word for word in self.scenario.run if word != "--reconcile")
        again = completed(namespace, *plain)
        if again.returncode and state == STATES[2]:
            again = completed(namespace, *self.scenario.run)  # two tables of one backend are two commits
        if again.returncode == 0 and snapshot(namespace) != self.done:
            return "the next run does not lead to the plan"
        return "" if again.returncode == 0 or state == STATES[0] else f"the next run fails: {again.stderr}"


def _calls(run: Traced) -> list[tuple[str, int]]:
    """Each system call from the run's first socket on, by name and number among all of its name."""
    counts: Counter[str] = Counter()
    result = []
    begun = False
    for line in run.calls:
        name = line.split()[1].partition("(")[0]
        counts[name] += 1
        begun = begun or name == "socket"
        if begun:
            result.append((name, counts[name]))
    return result
