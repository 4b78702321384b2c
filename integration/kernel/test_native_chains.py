"""A native table that is written anew keeps its chains, so that no packet meets one without rules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from integration.kit.backends import BACKENDS
from integration.kit.program import succeed
from tests.planning.cases import argv

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

NATIVE = BACKENDS["native"]
REDIRECT, TPROXY = argv("article-ipv6"), argv("article-tproxy")
PLANS = {"redirect": REDIRECT, "tproxy": TPROXY, "dns": [*REDIRECT, "--redirect-dns", "--capture-all-dns"]}


def tables(namespace: Namespace) -> list[str]:
    """What nft lists of each table, without what its rules have counted."""
    return sorted(map(str.strip, namespace.run("nft", "-s", "list", "ruleset").split("table ")))


def chains(namespace: Namespace) -> list[tuple[str, str, int]]:
    """Table, name and handle of each chain, in the order of nft's list."""
    listed = json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
    result = (each["chain"] for each in listed if "chain" in each)
    return [(each["table"], each["name"], each["handle"]) for each in result]


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_plan_keeps_all(namespace: Namespace, plan: str) -> None:
    succeed(namespace, *NATIVE, *PLANS[plan])
    before, text = chains(namespace), namespace.run("nft", "-s", "list", "ruleset")
    succeed(namespace, *NATIVE, *PLANS[plan], "--force-apply")
    assert chains(namespace) == before
    assert namespace.run("nft", "-s", "list", "ruleset") == text


@pytest.mark.parametrize("before", PLANS)
@pytest.mark.parametrize("after", PLANS)
def test_another_plan_is_listed_as_if_it_were_the_first(namespace: Namespace, before: str, after: str) -> None:
    succeed(namespace, *NATIVE, *PLANS[after])
    fresh = tables(namespace)
    succeed(namespace, "--cleanup-only")
    succeed(namespace, *NATIVE, *PLANS[before])
    existed = chains(namespace)
    succeed(namespace, *NATIVE, *PLANS[after], "--reconcile")
    assert tables(namespace) == fresh
    if "tproxy" not in {before, after}:  # the same base chains, and the first of the others
        assert {"prerouting", "output"} < {name for _, name, _ in set(existed) & set(chains(namespace))}
