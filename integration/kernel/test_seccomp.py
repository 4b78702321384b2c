"""A seccomp profile that refuses what the program needs: it says what and why, and leaves everything as it was."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from integration.kit.backends import BACKENDS
from integration.kit.program import ROOT, completed, routing, succeed
from tests.planning.cases import argv

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

TPROXY = [*argv("article-tproxy"), "--enable-ipv6"]
REMEDY = "a seccomp filter is in force and may forbid this: allow the call in its profile"


def under(name: str) -> tuple[str, ...]:
    """The command that runs another under the filter of this name."""
    return ("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "integration.kit.filters", name)


def everything(namespace: Namespace) -> str:
    """All rules of all backends, and routing; a legacy table that was looked at is there from then on, empty."""
    legacy = (namespace.run(save) for save in ("iptables-legacy-save", "ip6tables-legacy-save"))
    rules = [line for text in legacy for line in text.splitlines() if line.startswith("-A") or " - [" in line]
    return "\n".join([*rules, namespace.run("nft", "list", "ruleset"), routing(namespace)])


@pytest.mark.parametrize("before", [[], argv("article")], ids=["nothing before", "another plan before"])
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("legacy", "getsockopt"),
        ("legacy", "legacy-writes"),
        ("nft", "netfilter"),
        ("nft", "no-netfilter"),
        ("native", "netfilter"),
        ("native", "no-netfilter"),
        *((backend, "routing") for backend in BACKENDS),
    ],
)
def test_a_refused_call_is_told_and_nothing_is_changed(
    namespace: Namespace, backend: str, name: str, before: list[str]
) -> None:
    flags = BACKENDS[backend]
    if before:
        succeed(namespace, *before, *flags)
    stood = everything(namespace)
    done = completed(namespace, *TPROXY, *flags, "--reconcile", prefix=under(name))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "\terror\t" in last
    assert REMEDY in last
    assert everything(namespace) == stood


@pytest.mark.parametrize("refused", ["netfilter", "no-netfilter"])
def test_legacy_needs_no_nftables(namespace: Namespace, refused: str) -> None:
    done = completed(namespace, *argv("article"), prefix=under(refused))
    assert done.returncode == 0, done.stderr
    assert "ISTIO_OUTPUT" in namespace.run("iptables-legacy-save")
