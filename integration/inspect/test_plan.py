"""`plan` and `check` in real namespaces: what they say is what an apply then does, and they do nothing themselves."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from integration.kit import raw_entries
from integration.kit.asking import Answer, ask
from integration.kit.backends import BACKENDS, rules, tables_of
from integration.kit.capabilities import become
from integration.kit.everything import state
from integration.kit.namespace import Namespace
from integration.kit.pod import applied, options_of
from integration.kit.program import routing, succeed
from integration.kit.settling import settled
from istio_init.errors_rare import Drifted
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.model.rules import IPV4, IPV6, Rule, Verdict
from istio_init.model.unknown import UnknownMatch

if TYPE_CHECKING:
    from istio_init.model.rules import TableName

ARTICLE = ["-u", "1337", "-i", "*", "-b", "*", "-d", "15090,15020", "--no-enable-ipv6"]
TPROXY = [
    *("-u", "1337", "-i", "*", "-x", "10.0.0.0/8,fd00::/8", "-b", "*", "-m", "TPROXY", "--enable-ipv6"),
    *("--redirect-dns", "--dns-servers", "10.0.0.10,fd00::10"),
]
# What is planted between an apply and a look: an Istio rule removed, one inserted.
RULE = "ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN"
# A match that this program knows by name alone, in the revision that iptables has given up: a class of net_cls.
UNKNOWN = Rule((UnknownMatch("cgroup", 0, struct.pack("=II", 1, 0)),), Verdict("RETURN"))
INTRUDER = "ISTIO_INBOUND -p tcp -m tcp --dport 4444 -j RETURN"


def apply(namespace: Namespace, backend: str, argv: list[str], *more: str) -> None:
    chosen = options_of(" ".join(f"'{word}'" for word in [*BACKENDS[backend], *argv, *more]))
    namespace.inside(lambda: applied(chosen))


def look(namespace: Namespace, verb: str, backend: str, argv: list[str], *more: str) -> Answer:
    """The verb's answer, and that it changed nothing."""
    before = state(namespace)
    answer = ask(namespace, verb, *argv, *BACKENDS[backend], "--output", "json", *more)
    assert state(namespace) == before
    return answer


def standing(namespace: Namespace, backend: str) -> dict[str, list[str]]:
    """Every chain's (and set's) lines as the backend's own tool prints them, counters zero."""
    result: dict[str, list[str]] = {}
    for place, text in rules(namespace, backend).items():
        for line in text.splitlines():
            if backend != "native":
                if chain := re.match(r"(?:-A (\S+)|:(\S+) - )", line):
                    result.setdefault(f"{place} {chain[1] or chain[2]}", []).append(line)
            elif line.startswith("\t") and line.endswith(" {"):
                result[f"{place.split()[0]} {text.split()[0]} {line[1:-2]}"] = lines = []
            elif line.startswith("\t\t"):
                lines.append(re.sub(r"packets \d+ bytes \d+", "packets 0 bytes 0", line.strip()))
    return result


def patched(before: dict[str, list[str]], diff: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What exists after the diff: its unchanged lines and those that it adds; before it stood what it says."""
    after = dict(before)
    for hunk in diff:
        if hunk["table"] == "routing":
            continue
        place = f"{hunk['family']} {hunk['table']} {hunk['chain']}"
        assert [line[1:] for line in hunk["lines"] if line[0] != "+"] == after.pop(place, [])
        if lines := [line[1:] for line in hunk["lines"] if line[0] != "-"]:
            after[place] = lines
    return after


def routed(diff: list[dict[str, Any]]) -> list[str]:
    return [line for hunk in diff if hunk["table"] == "routing" for line in hunk["lines"]]


@pytest.mark.parametrize("argv", [ARTICLE, TPROXY], ids=["article", "tproxy"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_absent_then_in_place(namespace: Namespace, backend: str, argv: list[str]) -> None:
    """The diff's lines are what exists once it is applied."""
    output = look(namespace, "plan", backend, argv).document
    assert output["state"] == "absent"
    assert (output["apply"]["does"], output["apply"]["why"]) == ("write", "no Istio rules found")
    assert look(namespace, "check", backend, argv).code == 4
    apply(namespace, backend, argv)
    settled(namespace)
    assert patched({}, output["diff"]) == standing(namespace, backend)
    done = look(namespace, "plan", backend, argv).document
    assert (done["state"], done["findings"], done["diff"]) == ("in place", [], [])
    assert done["apply"] == {"does": "nothing", "why": "in place", "steps": []}
    checked = look(namespace, "check", backend, argv)
    assert (checked.code, checked.document["state"], checked.document["findings"]) == (0, "in place", [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_drift(namespace: Namespace, backend: str) -> None:
    """One rule taken out and one put in: an apply refuses, and with --reconcile does what the diff says."""
    apply(namespace, backend, ARTICLE)
    tables = tables_of(namespace, IPV4, backend)
    tables.delete("nat", RULE)
    tables.insert("nat", INTRUDER)
    checked = look(namespace, "check", backend, ARTICLE)
    assert checked.code == 3
    assert [text.split(" ")[2] for text in checked.document["findings"]] == ["ISTIO_INBOUND", "ISTIO_OUTPUT"]
    output = look(namespace, "plan", backend, ARTICLE).document
    assert (output["state"], output["apply"]["does"]) == ("drifted", "refuse")
    with pytest.raises(Drifted):
        apply(namespace, backend, ARTICLE)
    willing = look(namespace, "plan", backend, ARTICLE, "--reconcile").document
    assert willing["apply"]["does"] == "write"
    assert willing["diff"] == output["diff"]
    before = standing(namespace, backend)
    apply(namespace, backend, ARTICLE, "--reconcile")
    assert patched(before, output["diff"]) == standing(namespace, backend)
    assert look(namespace, "check", backend, ARTICLE).code == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_options_than_before(namespace: Namespace, backend: str) -> None:
    """From TPROXY to REDIRECT: tables go, routing goes, in the order in which an apply says it does it."""
    apply(namespace, backend, TPROXY)
    settled(namespace)
    desired = [*ARTICLE[:-1], "--enable-ipv6"]
    output = look(namespace, "plan", backend, desired).document
    before, routes = standing(namespace, backend), routing(namespace)
    apply(namespace, backend, desired, "--reconcile")
    assert patched(before, output["diff"]) == standing(namespace, backend)
    assert routed(output["diff"])
    for line in routed(output["diff"]):
        assert line[0] == "-"
        namespace.run(*line[1:].split())
    assert routing(namespace) == routes
    [step] = output["apply"]["steps"]
    order = [table["table"] for table in step["tables"]]
    assert "mangle" not in order[: order.index("nat")]


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rules_of_others_stay(namespace: Namespace, backend: str) -> None:
    """They are in no finding, and in the diff only as unchanged lines."""
    iptables = f"iptables-{backend}"
    namespace.run(iptables, "-w", "-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "ACCEPT")
    namespace.run(iptables, "-w", "-t", "filter", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    output = look(namespace, "plan", backend, ARTICLE).document
    assert output["state"] == "absent"
    [hunk] = [hunk for hunk in output["diff"] if hunk["chain"] == "OUTPUT"]
    assert hunk["lines"] == [" -A OUTPUT -p udp -j ACCEPT", "+-A OUTPUT -j ISTIO_OUTPUT"]
    before = standing(namespace, backend)
    apply(namespace, backend, ARTICLE)
    assert patched(before, output["diff"]) == standing(namespace, backend)
    namespace.run(iptables, "-w", "-t", "nat", "-I", "OUTPUT", "-p", "icmp", "-j", "ACCEPT")
    assert look(namespace, "check", backend, ARTICLE).code == 0


def test_rules_in_another_backends_tables(namespace: Namespace) -> None:
    """Ours in two backends take packets twice: drift, even where one of them holds the plan."""
    apply(namespace, "legacy", ARTICLE)
    apply(namespace, "nft", ARTICLE)
    checked = look(namespace, "check", "nft", ARTICLE)
    assert (checked.code, checked.document["findings"]) == (3, ["Istio rules also exist in the legacy tables"])
    output = look(namespace, "plan", "nft", ARTICLE).document
    assert output["apply"]["does"] == "refuse"
    assert {hunk["backend"] for hunk in output["diff"]} == {"legacy"}
    legacy = standing(namespace, "legacy")
    assert patched(legacy, output["diff"]) == {}


def test_routing_that_is_gone(namespace: Namespace) -> None:
    apply(namespace, "legacy", TPROXY)
    settled(namespace)
    namespace.run("ip", "rule", "del", "fwmark", "1337")
    checked = look(namespace, "check", "legacy", TPROXY)
    assert (checked.code, checked.document["findings"]) == (3, ["missing: ip -4 rule add fwmark 1337 lookup 133"])
    output = look(namespace, "plan", "legacy", TPROXY).document
    assert routed(output["diff"]) == ["+ip -4 rule add fwmark 1337 lookup 133"]
    [line] = routed(output["diff"])
    namespace.run(*line[1:].split())
    assert look(namespace, "check", "legacy", TPROXY).code == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_cleaning_up(namespace: Namespace, backend: str) -> None:
    assert look(namespace, "plan", backend, TPROXY, "--cleanup-only").document["apply"]["does"] == "nothing"
    apply(namespace, backend, TPROXY)
    settled(namespace)
    output = look(namespace, "plan", backend, ["--cleanup-only"]).document
    assert output["apply"]["does"] == "write"
    assert patched(standing(namespace, backend), output["diff"]) == {}
    for step in output["apply"]["steps"]:
        for line in step["remove"]:
            namespace.run(*line.split())
    assert "1337" not in routing(namespace)
    assert "::6" not in routing(namespace)


def test_text(namespace: Namespace) -> None:
    assert ask(namespace, "check", *ARTICLE).output == "absent (legacy): no Istio rules found\n"
    apply(namespace, "legacy", ARTICLE)
    assert ask(namespace, "check", *ARTICLE).output == "in place (legacy)\n"
    tables_of(namespace, IPV4, "legacy").delete("nat", RULE)
    assert ask(namespace, "check", *ARTICLE).output == (
        "drifted (legacy): ipv4 nat ISTIO_OUTPUT rule 8 missing: -d 127.0.0.1/32 -j RETURN\n"
    )
    lines = ask(namespace, "plan", *ARTICLE).output.splitlines()
    assert lines[0] == "drifted (legacy: the legacy tables have rules)"
    assert lines[2] == "ipv4 nat ISTIO_OUTPUT"
    assert [line for line in lines if line.startswith("  +")] == ["  + -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN"]
    assert "    ... 5 unchanged lines" in lines
    assert lines[-3:] == [
        "apply refuses without --reconcile: Istio rules that differ from the requested ones already exist",
        "apply --reconcile would, in this order:",
        "  1. write legacy ipv4 nat: 17 rules",
    ]


def test_places(namespace: Namespace) -> None:
    """From another namespace, by path and by process; one place at a time."""
    apply(namespace, "legacy", ARTICLE)
    with Namespace() as elsewhere:
        assert ask(elsewhere, "check", *ARTICLE).code == 4
        assert ask(elsewhere, "check", *ARTICLE, "--netns", namespace.path).code == 0
        # As explain and prove are asked.
        for verb in ("check", "plan", "show"):
            answer = ask(elsewhere, verb, *ARTICLE, "--live", "--netns", namespace.path)
            assert (answer.code, answer.errors) == (0, "")
            assert answer.output.startswith("in place")
        assert ask(elsewhere, "check", *ARTICLE, "--network-namespace", namespace.path).code == 0
        sleeper = namespace.start("sleep", "600")
        try:
            while os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != os.stat(namespace.path).st_ino:
                assert sleeper.poll() is None
            assert ask(elsewhere, "check", *ARTICLE, "--pid", str(sleeper.pid)).code == 0
        finally:
            sleeper.kill()
            sleeper.communicate()
        both = ask(elsewhere, "check", *ARTICLE, "--netns", namespace.path, "--pid", "1")
        assert (both.code, both.output) == (255, "")
        assert both.errors.endswith("use only one of them\n")
        for flag in ("--netns", "--container"):
            unset = ask(namespace, "check", *ARTICLE, flag, "")
            assert (unset.code, unset.output) == (255, "")
            assert unset.errors.startswith(f"istio-init: {flag}: '': empty: ")
        gone = ask(elsewhere, "check", *ARTICLE, "--netns", "/var/run/netns/nobody")
        assert gone.code == 1
        assert gone.errors.count("\n") == 1


def test_a_check_of_a_cleaning_is_none(namespace: Namespace) -> None:
    refused = ask(namespace, "check", *ARTICLE, "--cleanup-only")
    assert (refused.code, refused.output) == (255, "")
    assert refused.errors.startswith("istio-init: --cleanup-only: ")


def test_one_who_may_not_know_makes_no_table(namespace: Namespace) -> None:
    """Asking a legacy table of its rules would make it: that is an error, and exit code 1."""

    def unprivileged() -> tuple[int, str]:
        become(1337, 1337)
        answer = subprocess.run(
            ["cat", "/proc/thread-self/net/ip_tables_names"], capture_output=True, text=True, check=False
        )
        from istio_init.cli.app import main

        return main(["check", *ARTICLE, *BACKENDS["legacy"]], {}), answer.stderr

    code, why = namespace.forked(unprivileged)
    assert "Permission denied" in why
    assert code == 1
    assert namespace.run("cat", "/proc/net/ip_tables_names") == ""


@pytest.mark.parametrize(("table", "chain"), [("nat", "OUTPUT"), ("filter", "INPUT")])
def test_rules_that_are_not_modelled(namespace: Namespace, table: TableName, chain: str) -> None:
    """Others' rules may be anything: they are shown in a form that no program loads."""
    entry = pack(UNKNOWN, IPV6).replace(raw_entries.SIGNATURE, bytes(4))

    def insert() -> None:
        with Libiptc().handle(IPV6, table) as handle:
            handle.insert(chain, 0, entry)
            handle.commit()

    namespace.inside(insert)
    output = look(namespace, "plan", "legacy", ARTICLE, "--enable-ipv6").document
    shown = [line for hunk in output["diff"] for line in hunk["lines"] if "[unknown" in line]
    assert len(shown) == (table == "nat")
    assert all(line[0] == " " for line in shown)


def test_a_rule_of_nftables_that_is_not_modelled(namespace: Namespace) -> None:
    apply(namespace, "native", ARTICLE)
    namespace.run("nft", "insert rule inet istio-proxy-nat istio-inbound tcp flags syn counter log")
    output = look(namespace, "plan", "native", ARTICLE).document
    assert output["apply"]["does"] == "refuse"
    [hunk] = output["diff"]
    assert [line[0] for line in hunk["lines"]].count("-") == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_of_a_family_that_the_options_leave_out(namespace: Namespace, backend: str) -> None:
    """A run of both families, then one of IPv4 with another port: the old IPv6 rules are left, and everyone says so."""
    plain = [*BACKENDS[backend], "-u", "1337", "-i", "*", "-b", "*"]
    succeed(namespace, *plain, "--enable-ipv6")
    again = [*plain, "-p", "15002", "--no-enable-ipv6"]
    warning = "ipv6 has Istio rules of an earlier run (nat), and these options make none"
    [line] = [line for line in succeed(namespace, *again, "--reconcile").splitlines() if warning in line]
    assert "\twarn\t" in line
    for verb in ("check", "show"):
        assert warning in ask(namespace, verb, *again).output
    succeed(namespace, *again, "--enable-ipv6", "--reconcile")
    assert warning not in ask(namespace, "check", *again, "--enable-ipv6").output
    succeed(namespace, *again, "--cleanup-only")
    assert warning not in succeed(namespace, *again, "--reconcile")
