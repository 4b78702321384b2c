"""Cleanup removes all Istio rules, whichever program wrote them, and nothing else."""

from __future__ import annotations

import re
import shlex

import pytest

from integration.kit.canaries import canaries, plant
from integration.kit.namespace import Namespace
from integration.kit.program import RESTORE, completed, existing, refuse, routing, saved, standing, succeed
from integration.kit.tracing import commits, traced
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from tests.planning.cases import CASES, argv

EXCLUDED = ["-c", "eth9", "-k", "eth9"]
NOTHING = "no Istio rules found; nothing to clean up"


def load_dry_run(namespace: Namespace, *arguments: str) -> None:
    """Rules and routing by the kernel's own tools: nobody signs them."""
    for family in FAMILIES:
        text = completed(namespace, *arguments, "--dry-run", "--ip-family", family).stdout
        rules = re.sub(r"^:\w+ ACCEPT .*\n", "", text, flags=re.MULTILINE)  # policies are the canaries'
        namespace.run(RESTORE[family], "--noflush", text=rules)
        for line in text.splitlines():
            if line.startswith("#"):
                namespace.run(*line[1:].split())


# With EXCLUDED, canaries for eth9 look like Istio rules.
@pytest.mark.parametrize("flags", ["the same", "none", "others"])
@pytest.mark.parametrize("name", ["article-ipv6", "article-tproxy", "drop-invalid-tproxy", "tproxy-mark-and-table"])
def test_with_any_flags(namespace: Namespace, name: str, flags: str) -> None:
    plant(namespace)
    before = {family: canaries(namespace, family) for family in FAMILIES}
    whole = standing(namespace)
    arguments = [*argv(name), *EXCLUDED]
    succeed(namespace, *arguments)
    text = {"the same": arguments, "none": [], "others": [*argv("kubevirt-all"), "-c", "eth9,eth8"]}[flags]
    assert "cleaned up" in succeed(namespace, *text, "--cleanup-only")
    assert {family: canaries(namespace, family) for family in FAMILIES} == before
    assert standing(namespace) == whole
    again = traced(namespace, "setsockopt,sendto", *text, "--cleanup-only")
    assert again.code == 0
    assert NOTHING in again.log
    assert not commits(again)
    assert not again.having("RTM_DEL")
    assert standing(namespace) == whole


@pytest.mark.parametrize("name", CASES)
def test_every_case_goes_without_its_flags(namespace: Namespace, name: str) -> None:
    empty = routing(namespace)
    succeed(namespace, *argv(name))
    tables = {family: existing(namespace, family) for family in FAMILIES}
    succeed(namespace, "--cleanup-only")
    assert routing(namespace) == empty
    for family in FAMILIES:
        assert existing(namespace, family) == tables[family]
        for text in saved(namespace, family).values():
            assert "-A" not in text
            assert "ISTIO" not in text


def test_what_restore_has_written_goes_with_its_flags(namespace: Namespace) -> None:
    """No rule of it is signed, and those that equal the plan's are ours."""
    plant(namespace)
    whole = standing(namespace)
    arguments = [*argv("article-tproxy"), "-c", "eth8"]
    load_dry_run(namespace, *arguments)
    succeed(namespace, *arguments, "--cleanup-only")
    assert standing(namespace) == whole


def test_what_restore_has_written_goes_without_its_flags(namespace: Namespace) -> None:
    """Chains, jumps to them, and routing by the mark in the rules; bare rules without a signature are anybody's."""
    plant(namespace)
    whole = standing(namespace)
    arguments = argv("tproxy-mark-and-table")
    load_dry_run(namespace, *arguments)
    succeed(namespace, "--cleanup-only")
    left = standing(namespace)
    assert left[1] == whole[1]
    for family in FAMILIES:
        extra = [
            line
            for table, text in left[0][family].items()
            for line in text.splitlines()
            if line not in whole[0][family][table].splitlines()
        ]
        assert not any("ISTIO" in line for line in extra)
        assert all(table == "mangle" or whole[0][family][table] == text for table, text in left[0][family].items())


def test_half_of_it(namespace: Namespace) -> None:
    """What is left of a run that somebody has taken apart is found, too: routing without rules needs the flags."""
    empty = routing(namespace)
    succeed(namespace, *argv("article-tproxy"))
    for family, tool in ((IPV4, "iptables-legacy"), (IPV6, "ip6tables-legacy")):
        namespace.run(tool, "-t", "nat", "-F")
        namespace.run(tool, "-t", "mangle", "-F")
        namespace.run(tool, "-t", "mangle", "-X")
        assert "ISTIO" not in saved(namespace, family)["mangle"]
    succeed(namespace, *argv("article-tproxy"), "--cleanup-only")
    assert routing(namespace) == empty
    for family in FAMILIES:
        assert all(":ISTIO" not in text for text in saved(namespace, family).values())


def test_routing_of_others_stays(namespace: Namespace) -> None:
    """Other marks, other tables, other devices and selectors, and a policy rule for our mark with more to it."""
    others = (
        "-4 rule add fwmark 0x7 lookup 77",
        "-4 rule add fwmark 1337/0xffff lookup 133",
        "-4 rule add from 192.0.2.1 fwmark 1337 lookup 133",
        "-6 rule add fwmark 1337 iif lo lookup 133",
        "-4 route add local default dev lo table 77",
        "-4 route add local 192.0.2.0/24 dev lo table 133",
        "-6 route add unreachable 2001:db8::/32 table 133",
        "-6 addr add ::7/128 dev lo",
    )
    for entry in others:
        namespace.run("ip", *entry.split())
    before = routing(namespace)
    succeed(namespace, *argv("article-tproxy"))
    assert routing(namespace) != before
    succeed(namespace, "--cleanup-only")
    assert routing(namespace) == before


def test_other_programs_name(namespace: Namespace) -> None:
    """istio-clean-iptables is the same as --cleanup-only."""
    succeed(namespace, *argv("article-tproxy"))
    code = "from istio_init.cli.start import istio_clean_iptables; istio_clean_iptables()"
    namespace.run("python3", "-c", code)
    for family in FAMILIES:
        assert all("-A" not in text for text in saved(namespace, family).values())
    mistaken = namespace.completed("python3", "-c", code, "--cleanup-onyl")
    assert mistaken.returncode == 255
    assert mistaken.stderr.startswith("istio-clean-iptables: ")


def test_a_dry_run_of_it_changes_nothing(namespace: Namespace) -> None:
    succeed(namespace, *argv("article-tproxy"))
    before = standing(namespace)
    done = completed(namespace, *argv("article-tproxy"), "--cleanup-only", "--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    assert standing(namespace) == before


def test_a_chain_of_others_that_uses_ours_is_kept_but_for_its_jump(namespace: Namespace) -> None:
    """An Istio chain can't go while something jumps to it."""
    succeed(namespace, *argv("article"))
    namespace.run("iptables-legacy", "-t", "nat", "-N", "THEIRS")
    for rule in ("-A THEIRS -d 192.0.2.1 -j ACCEPT", "-A THEIRS -j ISTIO_REDIRECT", "-A OUTPUT -j THEIRS"):
        namespace.run("iptables-legacy", "-t", "nat", *shlex.split(rule))
    assert "nat THEIRS rule 1 unexpected: -j ISTIO_REDIRECT" in refuse(namespace, *argv("article"))
    succeed(namespace, "--cleanup-only")
    rules = [line for line in saved(namespace, IPV4)["nat"].splitlines() if line.startswith("-A")]
    assert rules == ["-A OUTPUT -j THEIRS", "-A THEIRS -d 192.0.2.1/32 -j ACCEPT"]
