"""While a run moves the rules from one backend's tables to another's, no connection is lost or passes uncaptured."""

from __future__ import annotations

import contextlib
import shlex
from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from integration.kit import program
from integration.kit.backends import BACKENDS
from integration.kit.pod import Pod, options_of
from integration.traffic.test_reconcile_traffic import REDIRECT, TPROXY, Traffic, WatchedFirewall, WatchedRouter, pod
from istio_init.errors import KernelError
from istio_init.log import Log
from istio_init.planning.plan import build
from istio_init.runner import transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.model.compare import TableChange
    from istio_init.model.rules import Family, Table

__all__ = ["pod"]  # the fixture

PAIRS = list(permutations(BACKENDS, 2))


class Watched(WatchedFirewall):
    """The same of any backend, with what only some of them have."""

    def __init__(self, backend: str, look: Callable[[], None]) -> None:
        super().__init__(look, shlex.join(BACKENDS[backend]))
        if hasattr(self.real, "write"):
            self.write = self._write

    def _write(self, changes: tuple[TableChange, ...]) -> None:
        self.real.write(changes)  # type: ignore[attr-defined]
        self.look()

    def restore(self, family: Family, desired: Table, like: Table) -> None:
        """As Restoring.restore."""
        self.real.restore(family, desired, like)  # type: ignore[attr-defined]
        self.look()


def moved(traffic: Traffic, pair: tuple[str, str], options: str, on_commit: Callable[[], None]) -> None:
    """Move the rules, with a look at the traffic after each write of rules or routing."""
    old, new = (Watched(backend, traffic.look) for backend in pair)
    router = WatchedRouter(traffic.look)
    transaction.apply(
        build(options_of(f"{options} --enable-ipv6")), new, router, Log("none"),
        reconcile=True, on_commit=on_commit, others=((pair[0], old),),
    )  # fmt: skip


@pytest.mark.parametrize("options", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_after_each_write(pod: Pod, pair: tuple[str, str], options: str) -> None:
    pod.apply(f"{shlex.join(BACKENDS[pair[0]])} {options}")
    with contextlib.closing(Traffic(pod)) as traffic:
        traffic.look()
        pod.namespace.inside(lambda: moved(traffic, pair, options, lambda: None))
        traffic.look()
        assert traffic.looks > 4


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_an_undone_move_lets_nothing_pass(pod: Pod, pair: tuple[str, str]) -> None:
    """One that fails when all is done goes all the way back, and captures on the way."""

    def fail() -> None:
        raise KernelError("the last step")

    pod.apply(f"{shlex.join(BACKENDS[pair[0]])} {TPROXY}")
    with contextlib.closing(Traffic(pod)) as traffic:
        with pytest.raises(KernelError, match="the last step"):
            pod.namespace.inside(lambda: moved(traffic, pair, TPROXY, fail))
        traffic.look()


@pytest.mark.parametrize("pair", [("legacy", "nft"), ("legacy", "native"), ("nft", "native")], ids="-".join)
def test_at_every_moment(pod: Pod, pair: tuple[str, str]) -> None:
    """Inbound connections without a break while the program moves TPROXY's rules there and back, twice."""
    pod.apply(f"{shlex.join(BACKENDS[pair[0]])} {TPROXY}")
    assert sum(captured_during(pod, backend, "--reconcile") for backend in (*reversed(pair), *reversed(pair))) > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_every_moment_of_writing_anew(pod: Pod, backend: str) -> None:
    """The same while the program writes TPROXY's rules that are in place anew."""
    pod.apply(f"{shlex.join(BACKENDS[backend])} {TPROXY}")
    assert sum(captured_during(pod, backend, "--force-apply") for _ in range(4)) > 20


def captured_during(pod: Pod, backend: str, flag: str) -> int:
    """How many inbound connections were made, one after the other and all captured, while the program ran."""
    argv = ("-u", "1337", *shlex.split(TPROXY), *BACKENDS[backend], "--enable-ipv6", flag)
    result = 0
    with program.start(pod.namespace, *argv) as run:
        while run.poll() is None:
            assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound:15006"
            result += 1
        _, message = run.communicate()
    assert run.returncode == 0, message
    return result
