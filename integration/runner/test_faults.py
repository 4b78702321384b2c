"""Killed runs, many runs at once, and others who edit the tables meanwhile."""

from __future__ import annotations

import fcntl
import os
import random
import select
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from integration.kit import program
from integration.kit.canaries import canaries, plant
from integration.kit.endpoints import awaited
from integration.kit.namespace import Namespace
from integration.kit.program import refuse, saved, standing, succeed
from integration.kit.tracing import traced
from integration.runner.test_rollback import SCENARIOS, clean_run, each_call, picture, prepare, with_everything_done
from istio_init.model.rules import IPV4
from tests.planning.cases import argv

REDIRECT, TPROXY = argv("article-ipv6"), argv("article-tproxy")
AT_ONCE = 20


@pytest.mark.parametrize("scenario", ["from nothing", "from TPROXY", "to nothing"])
def test_killed_at_each_write(scenario: str) -> None:
    """Whatever was done by then, the same command line, run again, ends in the plan, and others' rules are whole."""
    desired = with_everything_done(scenario)
    whole = clean_run(scenario)
    _, command = SCENARIOS[scenario]
    for name, number in each_call(whole, "SET_REPLACE", "RTM_NEW", "RTM_DEL"):
        with Namespace() as namespace:
            prepare(namespace, scenario)
            run = traced(namespace, "setsockopt,sendto", *command, inject=f"{name}:signal=SIGKILL:when={number}")
            assert run.code == -9
            succeed(namespace, *command)
            assert picture(namespace) == desired, f"killed at {run.calls[-1]}"


def test_killed_at_any_moment(namespace: Namespace) -> None:
    plant(namespace)
    before = canaries(namespace)
    start = time.monotonic()
    succeed(namespace, *TPROXY)
    length = time.monotonic() - start
    existing = standing(namespace)
    for _ in range(8):
        succeed(namespace, "--cleanup-only")
        with program.start(namespace, *TPROXY) as run:
            select.select([], [], [], random.uniform(0, length))  # the moment is what is random
            run.kill()
            run.communicate()
        succeed(namespace, *TPROXY)
        assert standing(namespace) == existing
        assert canaries(namespace) == before


def test_many_at_once(namespace: Namespace) -> None:
    """One of them applies, the others find it in place."""
    runs = [program.start(namespace, *TPROXY) for _ in range(AT_ONCE)]
    logs = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * AT_ONCE, logs
    assert len([log for log in logs if "applied (no Istio rules found)" in log]) == 1
    assert len([log for log in logs if "in place, nothing written" in log]) == AT_ONCE - 1
    with Namespace() as other:
        succeed(other, *TPROXY)
        assert standing(other) == standing(namespace)


def test_many_at_once_that_disagree(namespace: Namespace) -> None:
    """With --reconcile each does its own, one after the other: the result is one complete plan."""
    commands = [[*REDIRECT, "--reconcile"], [*TPROXY, "--reconcile"], ["--cleanup-only"]]
    ends = []
    for command in commands:
        with Namespace() as other:
            succeed(other, *command)
            ends.append(standing(other))
    runs = [program.start(namespace, *commands[number % 3]) for number in range(AT_ONCE)]
    logs = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * AT_ONCE, logs
    rules, routes = standing(namespace)
    held = {family: {n: t for n, t in tables.items() if "-A" in t or ":ISTIO" in t} for family, tables in rules.items()}
    assert (held, routes) in ends


@pytest.mark.parametrize("lock", ["the same lock", "no lock"])
def test_somebody_else_edits_meanwhile(namespace: Namespace, lock: str, tmp_path: os.PathLike[str]) -> None:
    """Every rule that the other one has added is there in the end, in order, and so is the plan.

    Without the lock their commits may be refused, when ours came in between, and are made again.
    """
    environ = dict(namespace.environment)
    if lock == "no lock":
        environ["XTABLES_LOCKFILE"] = os.path.join(tmp_path, "lock")
    stop = threading.Event()
    added: list[str] = []

    def edit() -> None:
        for number in range(1, 255):
            rule = f"-A OUTPUT -d 192.0.2.{number}/32 -j ACCEPT"
            command = ["ip", "netns", "exec", namespace.name, "iptables-legacy", "-w", "-t", "nat", *rule.split()]
            while subprocess.run(command, env=environ, capture_output=True, check=False).returncode:
                pass
            added.append(rule)
            if stop.is_set():
                return

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        for command in (["-b", "*"], ["-b", "*", "-i", "*", "-d", "1,2,3"], [], ["--cleanup-only"], REDIRECT):
            succeed(namespace, "-u", "1337", *command, "--reconcile")
    finally:
        stop.set()
        editor.join()
    lines = saved(namespace, IPV4)["nat"].splitlines()
    assert [line for line in lines if line.startswith("-A OUTPUT -d")] == added
    assert "in place" in succeed(namespace, *REDIRECT)


@pytest.fixture
def held(namespace: Namespace) -> Iterator[int]:
    """The namespace's xtables lock, held by this process: its descriptor."""
    descriptor = os.open(namespace.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def test_the_lock_held_elsewhere(namespace: Namespace, held: int) -> None:
    before = standing(namespace)
    for command in (TPROXY, ["--cleanup-only"]):
        message = refuse(namespace, *command, "--wait", "0.2")
        assert f"{namespace.lock}: held by pid {os.getpid()} (" in message
        assert "--wait" in message
    assert standing(namespace) == before


def told_to_wait(run: subprocess.Popen[str]) -> str:
    """The line that says for what a run waits, once it has been logged; empty where it ends without."""
    assert run.stderr
    return next((line for line in run.stderr if "waiting" in line), "")


def test_the_lock_given_back_in_time(namespace: Namespace, held: int) -> None:
    with program.start(namespace, *TPROXY) as run:
        report = told_to_wait(run)
        fcntl.flock(held, fcntl.LOCK_UN)
        _, log = run.communicate()
    assert f"waiting up to 30 s for {namespace.lock}, held by pid {os.getpid()}" in report
    assert run.returncode == 0
    assert "applied" in log


def test_a_signal_while_it_waits_for_the_lock(namespace: Namespace, held: int) -> None:
    with program.start(namespace, *TPROXY) as run:
        told_to_wait(run)
        run.terminate()
        _, log = run.communicate()
    assert run.returncode == 1
    assert log.splitlines()[-1].endswith("ended by signal 15")


def test_a_killed_run_leaves_no_lock_behind(namespace: Namespace) -> None:
    with program.start(namespace, *TPROXY) as run:
        awaited(lambda: os.path.exists(namespace.lock) or run.poll() is not None, "the lock")
        run.kill()
        run.communicate()
    succeed(namespace, *TPROXY, "--wait", "0.2")
