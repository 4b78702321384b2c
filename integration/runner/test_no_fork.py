"""A run is one process: whatever it does, it starts no other, and it reads no source where byte code is there."""

from __future__ import annotations

import re

import pytest

from integration.kit.namespace import Namespace
from integration.kit.program import bytecode_compiled, succeed
from integration.kit.tracing import Traced, traced
from tests.planning.cases import argv

PROCESSES = "execve,execveat,clone,clone3,fork,vfork"
TPROXY, REDIRECT = argv("article-tproxy"), argv("article-ipv6")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Byte code for all modules, as an image has it."""
    bytecode_compiled()


def alone(run: Traced) -> bool:
    """Whether the run has executed itself and nothing else."""
    assert run.calls, "strace has seen nothing"
    return len(run.calls) == 1 and "execve(" in run.calls[0] and '"-m", "istio_init"' in run.calls[0]


RUNS = {
    "applies": (None, TPROXY),
    "applies REDIRECT": (None, REDIRECT),
    "finds it in place": (TPROXY, TPROXY),
    "finds drift": (REDIRECT, TPROXY),
    "reconciles": (REDIRECT, [*TPROXY, "--reconcile"]),
    "cleans up": (TPROXY, ["--cleanup-only"]),
    "finds nothing to clean up": (None, ["--cleanup-only"]),
    "prints": (None, [*TPROXY, "--dry-run"]),
    "finds out what it is not told": (None, ["-b", "*", "-i", "*", "--redirect-dns"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_one_process(namespace: Namespace, name: str) -> None:
    before, command = RUNS[name]
    if before:
        succeed(namespace, *before)
    run = traced(namespace, PROCESSES, *command)
    assert alone(run), run.calls
    assert run.code == (1 if name == "finds drift" else 0), run.log


def test_a_validation_is_one_process(namespace: Namespace) -> None:
    """It may have threads of its own, but no children, and executes nothing."""
    run = traced(namespace, PROCESSES, *REDIRECT, "--run-validation")
    assert run.code == 0, run.log
    assert len(run.having("execve(")) == 1
    assert all("CLONE_THREAD" in call for call in run.calls if re.search(r"\bclone3?\(", call)), run.calls


def test_a_failure_is_one_process(namespace: Namespace) -> None:
    namespace.run("sysctl", "-w", "net.ipv6.conf.lo.disable_ipv6=1")
    run = traced(namespace, PROCESSES, *TPROXY)
    assert run.code == 1
    assert alone(run), run.calls


@pytest.mark.parametrize("name", ["applies", "finds it in place", "reconciles", "cleans up", "prints"])
def test_no_source_is_read(namespace: Namespace, name: str) -> None:
    """Neither ours nor the standard library's."""
    before, command = RUNS[name]
    if before:
        succeed(namespace, *before)
    run = traced(namespace, "openat,open", *command)
    opened = [match[1] for call in run.calls if (match := re.search(r'"([^"]+)", O_RDONLY.*= \d+$', call))]
    assert any("/capture." in path for path in opened)
    assert [path for path in opened if path.endswith(".py")] == []


def test_nothing_is_looked_up_in_path(namespace: Namespace) -> None:
    """No program's file is so much as asked for, and the libraries come from the dynamic linker."""
    run = traced(namespace, "file", *TPROXY)
    assert run.code == 0
    assert not [call for call in run.calls if "/sbin/" in call or "/bin/ip" in call]
    assert run.having("libip4tc.so.2")
