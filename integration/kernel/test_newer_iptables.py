"""A newer iptables-nft: this program reads the rules that it writes, of a dry run and of other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.kernel.test_iptables_nft import NFT, golden
from integration.kit.asking import ask
from integration.kit.namespace import Namespace
from integration.kit.newer_iptables import PREFIX, NewerIptables, expressions, unpacked
from integration.kit.program import refuse, routing, succeed, tables
from istio_init.formats.iptables_save import dump
from istio_init.kernel.nft.compat import IptablesNft
from istio_init.model.rules import FAMILIES, IPV4
from tests.kernel.newer_iptables import RULES, recorded
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    import pathlib

    from istio_init.model.rules import Family


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> NewerIptables:
    base: pathlib.Path = tmp_path_factory.getbasetemp()
    # Workers of one run share the directory above theirs.
    return unpacked(base.parent if "popen-" in base.name else base)


def restore(namespace: Namespace, newer: NewerIptables, name: str) -> None:
    """Load a case's dry run as this version does; routing is set up by this program."""
    for family, text in golden(name).items():
        newer.run(namespace, f"{PREFIX[family]}-nft-restore", text=text)


def saved(namespace: Namespace, newer: NewerIptables) -> dict[Family, dict[str, str]]:
    return {family: tables(newer.run(namespace, f"{PREFIX[family]}-nft-save")) for family in FAMILIES}


def test_it_is_newer(namespace: Namespace, newer: NewerIptables) -> None:
    assert newer.version(namespace) >= (1, 8, 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_record_is_what_it_writes(namespace: Namespace, newer: NewerIptables, family: Family) -> None:
    """Of the unit tests; and the same rules together are read from the kernel."""
    every = [each for each in recorded() if each.family == family]
    for table, lines in RULES[family].items():
        newer.run(namespace, f"{PREFIX[family]}-nft-restore", text=f"*{table}\n:FOO - [0:0]\n{lines}COMMIT\n")
        actual = expressions(namespace, family, table)
        assert sorted(actual) == sorted(each.expressions for each in every if each.table == table)
    assert sorted(newer.saved(namespace, family)) == sorted(each.saved for each in every)
    text = dump(namespace.inside(lambda: IptablesNft().read(family)))
    read = [line for line in text.splitlines() if line.startswith("-A")]
    assert sorted(read) == sorted(each.saved for each in every)


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_that_it_loads_is_the_plan(namespace: Namespace, newer: NewerIptables, name: str) -> None:
    """Nothing is written, the other verbs read it, and a cleanup leaves nothing."""
    empty = routing(namespace)
    succeed(namespace, *argv(name), *NFT)
    namespace.run("nft", "flush", "ruleset")
    restore(namespace, newer, name)
    before = namespace.run("nft", "-a", "list", "ruleset")
    assert "in place, nothing written" in succeed(namespace, *argv(name), *NFT)
    assert namespace.run("nft", "-a", "list", "ruleset") == before
    assert ask(namespace, "check", *NFT, *argv(name)).code == 0
    assert "unknown" not in ask(namespace, "show", *NFT, *argv(name)).output
    succeed(namespace, *argv(name), "--cleanup-only", *NFT)
    assert not any(newer.saved(namespace, family) for family in FAMILIES)
    assert routing(namespace) == empty


# Rules of other programs among Istio's, each of which this version writes in its own way.
FOREIGN = """\
*nat
:MINE - [0:0]
-A PREROUTING -p tcp -m tcp --dport 0:100 -j MINE
-A OUTPUT -p tcp -m tcp --dport 80 --tcp-flags SYN,RST SYN -m limit --limit 7/min -j MINE
-A MINE -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:8443
-A POSTROUTING -s 10.0.0.0/8 ! -o eth+ -j MASQUERADE --random-fully
COMMIT
*filter
-A FORWARD -f -j DROP
-A INPUT -p icmp -m icmp --icmp-type 8 -j NFLOG --nflog-prefix x --nflog-group 5
-A OUTPUT -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
COMMIT
"""
REDIRECT = [*argv("article"), *NFT]


def edit(namespace: Namespace, newer: NewerIptables, words: str) -> None:
    """Change the table nat as this version does."""
    newer.run(namespace, "iptables-nft", "-t", "nat", *words.split())


def test_other_programs_rules_stay_as_they_are(namespace: Namespace, newer: NewerIptables) -> None:
    """Istio's rules come, are repaired and go."""
    newer.run(namespace, "iptables-nft-restore", "--noflush", text=FOREIGN)
    before = newer.saved(namespace, IPV4)
    assert before
    succeed(namespace, *REDIRECT)
    placed = newer.saved(namespace, IPV4)
    assert [line for line in placed if "ISTIO" not in line] == before
    newer.run(
        namespace,
        "iptables-nft",
        *["-t", "nat", "-I", "ISTIO_OUTPUT", "-p", "tcp", "-m", "tcp", "--dport", "0:100", "-j", "ACCEPT"],
    )
    newer.run(
        namespace,
        "iptables-nft",
        *["-t", "nat", "-D", "ISTIO_INBOUND", "-p", "tcp", "-m", "tcp", "--dport", "15020", "-j", "RETURN"],
    )
    message = refuse(namespace, *REDIRECT)
    assert "ipv4 nat ISTIO_OUTPUT rule 1 unexpected: -p tcp -m tcp --dport 0:100 -j ACCEPT" in message
    assert "missing: -p tcp -m tcp --dport 15020 -j RETURN" in message
    succeed(namespace, *REDIRECT, "--reconcile")
    assert newer.saved(namespace, IPV4) == placed
    succeed(namespace, *REDIRECT, "--cleanup-only")
    assert newer.saved(namespace, IPV4) == before


def explained(namespace: Namespace, to: str) -> str:
    return ask(namespace, "explain", "--live", *REDIRECT, "--outbound", "--to", to, "--uid", "1000").output


def with_network(namespace: Namespace) -> None:
    """An interface by which packets leave."""
    for words in (
        "link add eth0 type veth peer eth1",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth1 up",
        "link set eth0 up",
    ):
        namespace.run("ip", *words.split())


def test_the_rule_that_decides_is_explained(namespace: Namespace, newer: NewerIptables) -> None:
    newer.run(namespace, "iptables-nft-restore", "--noflush", text=FOREIGN)
    with_network(namespace)
    succeed(namespace, *REDIRECT)
    assert explained(namespace, "192.0.2.7:99").startswith("Verdict: captured")
    edit(namespace, newer, "-I OUTPUT -p tcp -m tcp --dport 0:100 -j ACCEPT")
    assert "because OUTPUT rule 1" in explained(namespace, "192.0.2.7:99").splitlines()[0]
    text = explained(namespace, "192.0.2.7:443")
    assert text.startswith("Verdict: captured")
    assert "--dport 0:100 -j ACCEPT   (its port is 443, not 0-100)" in text


def test_a_rule_of_nft_is_unknown_to_its_own_packets_alone(namespace: Namespace) -> None:
    """It has a set, and an effect that iptables has no target for."""
    with_network(namespace)
    succeed(namespace, *REDIRECT)
    namespace.run("nft", *["insert", "rule", "ip", "nat", "OUTPUT", "udp", "dport", "{", "80,", "81", "}", "accept"])
    assert explained(namespace, "192.0.2.7:80").startswith("Verdict: captured")
    namespace.run("nft", *["insert", "rule", "ip", "nat", "OUTPUT", "tcp", "dport", "80", "dnat", "to", "192.0.2.9:90"])
    assert explained(namespace, "192.0.2.7:81").startswith("Verdict: captured")
    verdict = explained(namespace, "192.0.2.7:80").splitlines()[0]
    assert verdict.startswith("Verdict: undecided")
    assert "-j nf_tables nat is not known to this program" in verdict
