"""Which rules of Istio's releases are known to be Istio's, and which only look so."""

from __future__ import annotations

import pytest

from istio_init.formats.iptables_restore import parse
from istio_init.formats.iptables_save import rule_text
from istio_init.model.rules import BUILTIN_CHAINS, FAMILIES, Ruleset
from istio_init.planning.changes import NamespaceState
from istio_init.planning.earlier_releases import SHAPES, suspects
from istio_init.planning.removal import removal
from tests.planning.releases import KUMA, RELEASES, SUSPECTS, Release
from tests.planning.test_changes import planned


def rulesets(release: Release) -> tuple[Ruleset, ...]:
    """The release's rules, those that are inserted in their order; sides that only a kernel would refuse are IPv4's."""
    result = []
    for family in FAMILIES:
        text = release.text(family).replace("-I PREROUTING 1", "-A PREROUTING")
        for table, chains in BUILTIN_CHAINS.items():
            heads = "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains)
            text = text.replace(f"*{table}\n", f"*{table}\n{heads}")
        if family != "ipv4":
            text = (
                text.replace("0.0.0.0", "::").replace("127.0.0.1/32", "::1/128").replace("10.96.0.10/32", "fd00::a/128")
            )
        result.append(parse(text, family, foreign=True))
    return tuple(result)


@pytest.mark.parametrize("name", [name for name in RELEASES if "virtual" not in name and "kubevirt" not in name])
def test_all_of_a_release_is_istios(name: str) -> None:
    state = NamespaceState(rulesets(RELEASES[name]))
    changes = removal(state, planned("article"), releases=True).tables
    assert {(change.family, change.name) for change in changes} == {
        (ruleset.family, table.name) for ruleset in state.rulesets for table in ruleset.tables
    }
    assert suspects(state.rulesets) == ()


@pytest.mark.parametrize("name", ["1.8-dns-without-chains", "1.10-dns-without-chains"])
def test_without_chains_a_plain_run_does_not_take_them_for_istios(name: str) -> None:
    """Only a cleanup does: a run beside them is the pod's start, which must not fail by what looks like a rule."""
    assert not removal(NamespaceState(rulesets(RELEASES[name])), planned("article")).tables


def test_another_meshs_rules_are_suspects() -> None:
    nat = f":KUMA_MESH_OUTBOUND - [0:0]\n{KUMA.ipv4['nat']}"
    state = NamespaceState((*rulesets(Release({**KUMA.ipv4, "nat": nat})),))
    assert not removal(state, planned("article"), releases=True).tables
    assert len(suspects(state.rulesets)) == 9


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_suspect_has_its_command(name: str) -> None:
    family, table, rule = SUSPECTS[name]
    release = Release({table: f"-A {rule}"}) if family == "ipv4" else Release({}, {table: f"-A {rule}"})
    [actual] = suspects(rulesets(release))
    tool = "iptables-nft" if family == "ipv4" else "ip6tables-nft"
    assert actual.command("nft") == f"{tool} -t {table} -D {rule}"


def test_every_shape_is_in_some_release_or_suspect() -> None:
    texts = {
        (table.name, chain.name, rule_text(rule))
        for release in (*RELEASES.values(), *(Release({t: f"-A {r}"}) for f, t, r in SUSPECTS.values()))
        for ruleset in rulesets(release)
        for table in ruleset.tables
        for chain in table.chains
        for rule in chain.rules
    }
    unused = [
        (kind, chain, shape.pattern)
        for kind, table, chain, shape in SHAPES
        if not any((table, chain) == each[:2] and shape.fullmatch(each[2]) for each in texts)
    ]
    assert [kind for kind, *_ in unused] == ["guardrail of a reconcile"] * 3
