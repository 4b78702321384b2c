"""In place means effective: base chains without packets, dormant tables; and whose tables and chains they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.program import refuse, succeed
from tests.planning.cases import argv

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

NFT, REDIRECT, TPROXY = BACKENDS["nft"], argv("article-ipv6"), argv("article-tproxy")
FAMILIES = {"ip": "ipv4", "ip6": "ipv6"}
# What is wrong with nat's OUTPUT, and the words for it.
CHAINS = {
    "no hook": "",
    "priority 50": "{ type nat hook output priority 50; }",
    "type filter": "{ type filter hook output priority -100; }",
    "another hook": "{ type nat hook prerouting priority -100; }",
}
THEIRS = "udp dport 53 counter accept"


def chain(namespace: Namespace, family: str, name: str = "OUTPUT") -> dict[str, Any]:
    """A chain of nat as nft lists it."""
    listed = json.loads(namespace.run("nft", "-j", "list", "chain", family, "nat", name))["nftables"]
    return next(each["chain"] for each in listed if "chain" in each)


def spoil(namespace: Namespace, family: str, head: str) -> None:
    """Make OUTPUT anew, otherwise hooked, with Istio's jump and a rule of another program before it."""
    commands = (
        f"flush chain {family} nat OUTPUT; delete chain {family} nat OUTPUT; add chain {family} nat OUTPUT {head};"
        f"add rule {family} nat OUTPUT {THEIRS}"
    )
    # The kernel refuses redirections where they can't work.
    jump = f"; add rule {family} nat OUTPUT counter jump ISTIO_OUTPUT" if "nat hook output" in head or not head else ""
    namespace.run("nft", commands + jump)


def jump_of(namespace: Namespace, family: str) -> str:
    """What show says of the jump in the family's OUTPUT."""
    tables = ask(namespace, "show", "--output", "json", *NFT, *REDIRECT).document["tables"]
    [nat] = [table for table in tables if (table["family"], table["table"]) == (family, "nat")]
    rules = {chain["chain"]: chain["rules"] for chain in nat["chains"]}
    return next((rule["state"] for rule in rules.get("OUTPUT", ()) if "ISTIO_OUTPUT" in rule["rule"]), "missing")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("why", CHAINS)
def test_a_base_chain_that_does_not_work_is_drift(namespace: Namespace, family: str, why: str) -> None:
    succeed(namespace, *NFT, *REDIRECT)
    spoil(namespace, family, CHAINS[why])
    checked = ask(namespace, "check", *NFT, *REDIRECT)
    assert checked.code == 3
    assert f"{FAMILIES[family]} nat OUTPUT " in checked.output
    assert f"OUTPUT ({why})" in checked.output or why in {"type filter", "another hook"}
    assert jump_of(namespace, FAMILIES[family]) != "in place"
    assert "--reconcile" in refuse(namespace, *NFT, *REDIRECT)
    succeed(namespace, *NFT, *REDIRECT, "--reconcile")
    assert jump_of(namespace, FAMILIES[family]) == "in place"
    mended = chain(namespace, family)
    assert (mended["type"], mended["hook"], mended["prio"]) == ("nat", "output", -100)
    lines = [line.strip() for line in namespace.run("nft", "list", "chain", family, "nat", "OUTPUT").splitlines()]
    assert [line for line in lines if "53" in line or "jump" in line] == [
        "udp dport 53 counter packets 0 bytes 0 accept",
        "counter packets 0 bytes 0 jump ISTIO_OUTPUT",
    ]
    assert ask(namespace, "check", *NFT, *REDIRECT).code == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dormant_table_is_drift(namespace: Namespace, family: str) -> None:
    succeed(namespace, *NFT, *REDIRECT)
    namespace.run("nft", f"add table {family} nat {{ flags dormant; }}")
    checked = ask(namespace, "check", *NFT, *REDIRECT)
    assert (checked.code, "OUTPUT (dormant)" in checked.output) == (3, True)
    succeed(namespace, *NFT, *REDIRECT, "--reconcile")
    assert "dormant" not in namespace.run("nft", "list", "table", family, "nat")
    assert ask(namespace, "check", *NFT, *REDIRECT).code == 0


@pytest.mark.parametrize("plan", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_tables_that_this_program_created_go(namespace: Namespace, plan: list[str]) -> None:
    succeed(namespace, *NFT, *plan)
    succeed(namespace, *NFT, "--cleanup-only")
    assert namespace.run("nft", "list", "ruleset") == ""


@pytest.mark.parametrize(
    "theirs",
    [
        "add set ip nat blocked { type ipv4_addr; }",
        "add map ip nat ports { type inet_service : ipv4_addr; }",
        "add counter ip nat hits",
        "add quota ip nat amount { over 10 mbytes }",
        "add set ip nat empty { type ipv4_addr; flags timeout; }",
        "add chain ip nat theirs",
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["there before", "added later"])
def test_what_other_programs_have_in_a_table_stays(namespace: Namespace, theirs: str, first: bool) -> None:
    if first:
        namespace.run("nft", f'add table ip nat {{ comment "theirs"; }}; {theirs}')
    before = namespace.run("nft", "list", "ruleset")
    succeed(namespace, *NFT, *REDIRECT)
    if not first:
        namespace.run("nft", theirs)
    succeed(namespace, *NFT, "--cleanup-only")
    after = namespace.run("nft", "list", "ruleset")
    assert "ISTIO" not in after
    assert "hook" not in after  # base chains that this program made are gone
    if first:
        assert after == before
    else:
        assert theirs.split()[4] in after


def test_a_table_that_another_program_created_stays(namespace: Namespace) -> None:
    namespace.run("nft", "add table ip nat; add chain ip nat OUTPUT { type nat hook output priority -100; }")
    before = namespace.run("nft", "list", "ruleset")
    succeed(namespace, *NFT, *REDIRECT)
    succeed(namespace, *NFT, "--cleanup-only")
    assert namespace.run("nft", "list", "ruleset") == before
