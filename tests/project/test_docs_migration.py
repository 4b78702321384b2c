"""The tables of docs/migration.md for Linkerd and Kuma: their flags exist, and ours make the rules that are meant."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from istio_init import dump, plan
from tests.kit.options import options

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("migration.md", "migration.zh.md")]
# linkerd2-proxy-init, proxy-init/cmd/root.go; kuma, docs/generated/raw/cmd/kumactl (2.x).
FLAGS = {
    "linkerd-init": {
        "incoming-proxy-port", "outgoing-proxy-port", "proxy-uid", "ports-to-redirect", "inbound-ports-to-ignore",
        "outbound-ports-to-ignore", "subnets-to-ignore", "simulate", "netns", "use-wait-flag", "ipv6",
    },
    "kumactl install transparent-proxy": {
        "dry-run", "exclude-inbound-ports", "exclude-outbound-ports", "exclude-outbound-ports-for-uids", "kuma-dp-uid",
        "kuma-dp-user", "redirect-all-dns-traffic", "redirect-dns", "redirect-dns-port", "redirect-inbound",
        "redirect-inbound-port", "redirect-outbound-port", "skip-dns-conntrack-zone-split", "verbose", "wait",
    },
}  # fmt: skip
# What the right column stands for, and the rule that it makes (or, with "not ", makes not).
RULES = {
    "-z 4143": "-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 4143",
    "-p 4140": "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 4140",
    "-u 2102 -g 2102": "-A ISTIO_OUTPUT -m owner --uid-owner 2102 -j RETURN",
    "-b '*' -d 4190,4191": "-A ISTIO_INBOUND -p tcp -m tcp --dport 4190 -j RETURN",
    "-o 25": "-A ISTIO_OUTPUT -p tcp -m tcp --dport 25 -j RETURN",
    "-x 10.0.0.0/8": "-A ISTIO_OUTPUT -d 10.0.0.0/8 -j RETURN",
    "--no-enable-ipv6": "not ::6/128",
    "--dry-run": "-A OUTPUT -j ISTIO_OUTPUT",
    "-z 15006": "-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006",
    "-p 15001": "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
    "-u UID -g GID": "-A ISTIO_OUTPUT -m owner --gid-owner 7 -j RETURN",
    "-b '*' -d 22": "-A ISTIO_INBOUND -p tcp -m tcp --dport 22 -j RETURN",
    "--redirect-dns": "-A ISTIO_OUTPUT_DNS -d 10.96.0.10/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
    "--redirect-dns --capture-all-dns": "-A ISTIO_OUTPUT_DNS -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
    "-b ''": "not -A PREROUTING",
}  # fmt: skip


def rows(page: Path, program: str) -> list[tuple[str, str]]:
    """The commands in both columns of the table with this heading."""
    _, _, table = page.read_text().partition(f"| {program} | istio-iptables |\n")
    lines = table.partition("\n\n")[0].splitlines()[1:]
    return [(codes[0], codes[1]) for line in lines if (codes := re.findall(r"`([^`]+)`", line))]


@pytest.mark.parametrize("program", FLAGS)
def test_both_languages_have_the_same_rows(program: str) -> None:
    english, chinese = (rows(page, program) for page in PAGES)
    assert english == chinese
    assert len(english) >= 8


@pytest.mark.parametrize("program", FLAGS)
def test_the_other_programs_flags_exist(program: str) -> None:
    named = {
        word.partition("=")[0][2:] for theirs, _ in rows(PAGES[0], program) for word in theirs.split() if "--" in word
    }
    assert named <= FLAGS[program]


def test_every_command_line_is_tried() -> None:
    assert {ours for program in FLAGS for _, ours in rows(PAGES[0], program)} == set(RULES)


@pytest.mark.parametrize("flags", RULES)
def test_a_command_line_makes_the_rule(flags: str) -> None:
    words = shlex.split(flags.replace("UID", "8").replace("GID", "7"))
    desired = options(
        ["-u", "1337", "-i", "*", "-b", "*", "--dns-servers", "10.96.0.10", "--no-enable-ipv6", *words], {}
    )
    assert desired is not None
    text = dump(plan(desired.replace(dry_run=False)))
    rule = RULES[flags].removeprefix("not ")
    assert (rule in text) == (not RULES[flags].startswith("not ")), text
