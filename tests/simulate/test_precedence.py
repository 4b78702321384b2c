"""Other programs' rules before Istio's: which are reported, at which number, and with which packet."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from istio_init.formats.iptables_restore import parse
from istio_init.formats.iptables_save import dump
from istio_init.model.rules import IPV4
from istio_init.planning.plan import build
from istio_init.simulate.precedence import precedences, precedences_after
from tests.kit.options import options

if TYPE_CHECKING:
    from istio_init.model.rules import Ruleset

ARTICLE = "-u 1337 -i '*' -b '*' -d 15020 --no-enable-ipv6"
JUMP = "-A PREROUTING -p tcp -j ISTIO_INBOUND"
# Another program's rules in nat, and those that are reported: chain, number, and what the example packet is.
CASES = {
    "inbound": (["-A PREROUTING -p tcp -m tcp --dport 8080 -j ACCEPT"], [("PREROUTING", 1, 8080)]),
    "inbound, from one interface": (["-A PREROUTING -i eth0 -p tcp -j RETURN"], [("PREROUTING", 1, 8080)]),
    "outbound": (["-A OUTPUT -p tcp -m tcp --dport 443 -j ACCEPT"], [("OUTPUT", 1, 443)]),
    "the second of two": (
        ["-A OUTPUT -p udp -m udp --dport 53 -j ACCEPT", "-A OUTPUT -d 198.51.100.0/24 -j ACCEPT"],
        [("OUTPUT", 2, 80)],
    ),
    "in a chain that it jumps to": (
        [":OTHER - [0:0]", "-A OUTPUT -p tcp -j OTHER", "-A OTHER -m owner --uid-owner 7 -j ACCEPT"],
        [("OUTPUT", 1, 80)],
    ),
    "of both directions": (
        ["-A PREROUTING -s 192.0.2.0/24 -j ACCEPT", "-A OUTPUT -j ACCEPT"],
        [("PREROUTING", 1, 8080), ("OUTPUT", 1, 80)],
    ),
    "what Istio does not capture either": (
        ["-A PREROUTING -p tcp -m tcp --dport 15020 -j ACCEPT", "-A OUTPUT -m owner --uid-owner 1337 -j ACCEPT"],
        [],
    ),
    "without a decision": (["-A OUTPUT -p tcp -j MARK --set-xmark 0x1/0xffffffff"], []),
}  # fmt: skip


def planned(words: str = ARTICLE) -> Ruleset:
    desired = options(shlex.split(words), {})
    assert desired is not None
    ruleset = build(desired).ruleset(IPV4)
    assert ruleset is not None
    return ruleset


def before_istio(lines: list[str]) -> Ruleset:
    """The plan's rules as they are saved, with these lines before them."""
    text = dump(planned())
    assert JUMP in text
    return parse(text.replace(JUMP, "\n".join([*lines, JUMP])), IPV4)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_that_keeps_a_packet_from_capture_is_reported(name: str) -> None:
    lines, reported = CASES[name]
    actual = [*precedences(before_istio(lines), planned())]
    assert [(each.chain, each.number, each.packet.destination_port) for each in actual] == reported
    assert all(each.table == "nat" and "is not captured" in each.text for each in actual)


@pytest.mark.parametrize("name", CASES)
def test_before_istios_rules_are_written_the_same_is_known(name: str) -> None:
    lines, reported = CASES[name]
    current = parse("\n".join(["*nat", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", *lines, "COMMIT\n"]), IPV4)
    actual = precedences_after((planned(),), (current,))
    assert [(each.chain, each.number, each.packet.destination_port) for each in actual] == reported


def test_a_rule_behind_istios_is_none() -> None:
    text = dump(planned()).replace("COMMIT\n", "-A PREROUTING -j ACCEPT\n-A OUTPUT -j ACCEPT\nCOMMIT\n")
    assert not [*precedences(parse(text, IPV4), planned())]


def test_tproxy_captures_in_mangle() -> None:
    desired = planned(f"{ARTICLE} -m TPROXY")
    text = dump(desired)
    assert JUMP in text
    current = parse(text.replace(JUMP, f"-A PREROUTING -p tcp -m tcp --dport 80 -j ACCEPT\n{JUMP}"), IPV4)
    assert [(each.table, each.chain, each.number) for each in precedences(current, desired)] == [
        ("mangle", "PREROUTING", 1)
    ]
