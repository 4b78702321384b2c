"""Policy rules that look at some bits of the mark, as Istio's ambient mode has them in pods: every verb reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from integration.kit.asking import ask
from integration.kit.namespace import Namespace
from integration.kit.program import routing, succeed
from istio_init.cli.verbs.subject import live_facts, with_lookup
from istio_init.kernel.netlink.masked_rules import masked_rules
from istio_init.model.masked_rule import MaskedRule

# As in cni/pkg/iptables of Istio 1.24 to 1.27, in the pod's namespace.
AMBIENT_RULES = """\
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
"""
ROUTING = ("rule add fwmark 0x111/0xfff pref 32764 lookup 100", "route add local 0.0.0.0/0 dev lo table 100")
RULE = MaskedRule("ipv4", 0x111, 0xFFF, 100)


@pytest.fixture
def ambient() -> Iterator[Namespace]:
    with Namespace() as pod:
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        # No link-local addresses, which the kernel adds a moment later.
        ways = [f"link set {name} addrgenmode none up" for name in ("eth0", "eth1")]
        for words in (*ways, "addr add 10.1.1.5/24 dev eth0", *ROUTING):
            pod.run("ip", *words.split())
        pod.run("ip", "route", "add", "default", "via", "10.1.1.1")
        pod.run("iptables-legacy-restore", text=AMBIENT_RULES)
        yield pod


# Each selects by more than some bits of the mark.
OTHERS = (
    "rule add fwmark 7 lookup 100",
    "rule add from 10.0.0.0/8 fwmark 0x222/0xfff lookup 100",
    "rule add not fwmark 0x223/0xfff lookup 100",
    "rule add iif lo fwmark 0x224/0xfff lookup 100",
    "rule add fwmark 0x225/0xfff uidrange 0-5 lookup 100",
    "rule add fwmark 0x226/0xfff blackhole",
    "rule add fwmark 0x227/0xfff lookup 100 suppress_prefixlength 0",
)


def test_they_are_read_and_nothing_that_says_more(ambient: Namespace) -> None:
    for words in (*OTHERS, "-6 rule add fwmark 0x10000/0xf0000 lookup 7"):
        ambient.run("ip", *words.split())
    outcome = ambient.inside(masked_rules)
    assert outcome == (RULE, MaskedRule("ipv6", 0x10000, 0xF0000, 7))
    assert RULE.command == "ip -4 rule add fwmark 0x111/0xfff lookup 100"


def explained(pod: Namespace, *question: str) -> str:
    return ask(pod, "explain", "--live", "-i", "*", "-b", "*", *question).output


@pytest.mark.parametrize(("mark", "table"), [("0x111", True), ("0xf111", True), ("0x112", False), ("0x1110", False)])
def test_explain_names_the_table(ambient: Namespace, mark: str, table: bool) -> None:
    text = explained(ambient, "--inbound", "--to", "203.0.113.9:80", "--mark", mark)
    assert ("delivered here, by its mark and table 100" in text) is table, text


@pytest.mark.parametrize("mark", [0, 0x111, 0x5111, 0x112, 0xFFFFFFFF, 0xFFFFF111])
def test_facts_agree_with_the_kernel(ambient: Namespace, mark: int) -> None:
    """What prove does without asking the kernel for routes."""
    facts = ambient.inside(lambda: with_lookup(live_facts().replace(masked_rules=masked_rules())))
    got = ambient.run("ip", "route", "get", "203.0.113.9", "mark", f"{mark:#x}")
    assert bool(facts.policy_route("ipv4", mark)) is got.startswith("local ")


def test_prove_counts_them(ambient: Namespace) -> None:
    """A mark of the proxy's that they lead to lo is a way out that is none."""
    options = ("-i", "*", "-b", "*")
    succeed(ambient, *options, "--reconcile")
    ambient.run("iptables-legacy", "-t", "mangle", "-F")
    assert ask(ambient, "prove", "--live", *options).code == 0
    ambient.run("iptables-legacy", "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "-j", "MARK", "--set-xmark", "0x5111")
    answer = ask(ambient, "prove", "--live", *options)
    assert answer.code != 0, answer.output
    assert "the proxy's own connections" in answer.output.lower() or "uid 1337" in answer.output


def test_show_and_check_tell_them_from_ours(ambient: Namespace) -> None:
    shown: Any = json.loads(ask(ambient, "show", "-i", "*", "-b", "*", "--output", "json").output)
    assert {"state": "foreign", "entry": RULE.command} in shown["routing"]
    assert {"state": "foreign", "entry": "ip -4 route add local default dev lo table 100"} in shown["routing"]
    assert "0x111" not in ask(ambient, "check", "-i", "*", "-b", "*").output


def test_diagnose_puts_them_into_its_bundle(ambient: Namespace, tmp_path: Any) -> None:  # noqa: ANN401 (a path)
    bundle = tmp_path / "bundle.tar.gz"
    answer = ask(ambient, "diagnose", "--netns", ambient.path, "--bundle", str(bundle))
    assert bundle.exists(), answer
    text = ambient.run("tar", "-xzOf", str(bundle), "--wildcards", "*routing.txt")
    assert RULE.command in text


def test_a_cleanup_leaves_and_names_them(ambient: Namespace) -> None:
    before = routing(ambient)
    log = succeed(ambient, "--cleanup-only")
    assert routing(ambient) == before
    [command] = [line.rpartition("to remove it: ")[2] for line in log.splitlines() if "policy rule" in line]
    assert command == ("ip -4 rule del fwmark 0x111/0xfff lookup 100; ip -4 route del local default dev lo table 100")
    ambient.run("sh", "-c", command)
    assert ambient.inside(masked_rules) == ()
