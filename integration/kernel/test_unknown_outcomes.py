"""System calls that fail for a moment, or after the kernel has done its part: the state of the kernel decides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from integration.kit import program
from integration.kit.namespace import Namespace
from integration.kit.settling import settled
from integration.kit.tracing import Traced, traced
from tests.planning.cases import argv

if TYPE_CHECKING:
    from collections.abc import Iterator

CASE = argv("article-tproxy")
READS = "getsockopt,recvfrom,recvmsg"


def numbered(run: Traced, name: str, *words: str) -> Iterator[int]:
    """The numbers, among a system call's, of those whose line has the words."""
    calls = run.having(f"{name}(")
    return (number for number, call in enumerate(calls, 1) if all(word in call for word in words))


def whole(*flags: str) -> tuple[Traced, object]:
    """A run without a fault, and the namespace after it."""
    with Namespace() as namespace:
        run = traced(namespace, f"setsockopt,{READS}", *CASE, *flags)
        assert run.code == 0, run.log
        return run, standing(namespace)


def standing(namespace: Namespace) -> object:
    """All that a run may change, once the kernel has finished it."""
    settled(namespace)
    return program.standing(namespace)


def only_one_line(log: str) -> bool:
    errors = [line for line in log.splitlines() if re.search(r"\terror\t|^Traceback", line)]
    return len(errors) <= 1 and "Traceback" not in log


@pytest.mark.parametrize("error", ["ENOMEM", "EINTR", "ENOBUFS"])
def test_counters_that_could_not_be_set_do_not_hide_the_commit(error: str) -> None:
    """Libiptc calls a commit failed whose rules the kernel has taken."""
    run, desired = whole()
    numbers = list(numbered(run, "setsockopt", "SO_SET_ADD_COUNTERS"))
    assert numbers
    for number in numbers:
        with Namespace() as namespace:
            done = traced(namespace, "setsockopt", *CASE, inject=f"setsockopt:error={error}:when={number}")
            assert done.code == 0, done.log
            assert standing(namespace) == desired


@pytest.mark.parametrize(("backend", "name", "error"), [
    ("legacy", "getsockopt", "ENOMEM"), ("legacy", "getsockopt", "EAGAIN"), ("legacy", "recvfrom", "ENOBUFS"),
    ("nft", "recvfrom", "ENOBUFS"), ("nft", "recvfrom", "EINTR"), ("native", "recvfrom", "ENOBUFS"),
])  # fmt: skip
def test_a_read_that_fails_for_a_moment_is_repeated(backend: str, name: str, error: str) -> None:
    flags = ("--native-nftables",) if backend == "native" else ("--force-iptables-binary", backend)
    run, desired = whole(*flags)
    for number in numbered(run, name):
        with Namespace() as namespace:
            before = standing(namespace)
            done = traced(namespace, name, *CASE, *flags, inject=f"{name}:error={error}:when={number}")
            assert only_one_line(done.log), done.log
            if done.code:
                assert standing(namespace) == before, done.calls[number - 1]
            else:
                assert standing(namespace) == desired
            assert done.code == 0, f"{done.calls[number - 1]}: {done.log}"
