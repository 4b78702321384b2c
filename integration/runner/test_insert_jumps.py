"""--insert-jumps: Istio's jumps before other programs' rules, in every backend that shares chains with them."""

from __future__ import annotations

import pytest

from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.program import succeed
from tests.planning.cases import argv

REDIRECT = argv("article-ipv6")


def chain(namespace: Namespace, backend: str) -> list[str]:
    return namespace.run(f"iptables-{backend}", "-w", "-t", "nat", "-S", "OUTPUT").splitlines()[1:]


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_jumps_are_first_and_stay_first(namespace: Namespace, backend: str) -> None:
    choice, iptables = BACKENDS[backend], (f"iptables-{backend}", "-w", "-t", "nat")
    namespace.run(*iptables, "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    succeed(namespace, *choice, *REDIRECT, "--insert-jumps")
    jump, theirs, later = "-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -p tcp -j ACCEPT", "-A OUTPUT -p udp -j RETURN"
    assert chain(namespace, backend) == [jump, theirs]
    assert "in place" in succeed(namespace, *choice, *REDIRECT, "--insert-jumps")
    namespace.run(*iptables, "-I", "OUTPUT", "-p", "udp", "-j", "RETURN")
    assert ask(namespace, "check", *choice, *REDIRECT, "--insert-jumps").code == 3
    assert ask(namespace, "check", *choice, *REDIRECT).code == 0  # as Istio has it, the place is no drift
    succeed(namespace, *choice, *REDIRECT, "--insert-jumps", "--reconcile")
    assert chain(namespace, backend) == [jump, later, theirs]
    succeed(namespace, *choice, "--cleanup-only")
    assert chain(namespace, backend) == [later, theirs]
