"""Numbers that no rule determines: what depends on them is undecided, and nothing else."""

from __future__ import annotations

from random import Random

import pytest

from istio_init.formats.iptables_restore import parse
from istio_init.formats.iptables_save import dump
from istio_init.model.ip_sets import IpSet
from istio_init.model.packet import Facts, Packet
from istio_init.model.routing import Address
from istio_init.model.rules import TCP, Network, Ruleset
from istio_init.model.unclear import OpenNumber, either
from istio_init.simulate.trace import trace
from tests.kit.packets import POD, SERVER, packed

HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
POD_ADDRESS = Facts((Address(Network(packed(POD), 32), "eth0"),))


def ruleset(rules: str, table: str = "mangle") -> Ruleset:
    chains = "".join(f":{hook} ACCEPT [0:0]\n" for hook in HOOKS if table == "mangle" or hook != "FORWARD")
    return parse(f"*{table}\n{chains}:SOME - [0:0]\n{rules}\nCOMMIT\n", "ipv4", foreign=True)


def ended(rules: str, table: str = "mangle", hook: str = "OUTPUT", facts: Facts = POD_ADDRESS, **fields: object) -> str:
    """ACCEPT, DROP or UNDECIDED for a packet of the pod's to a server."""
    packet = Packet(hook, TCP, packed(POD), packed(SERVER), 40000, 80, out_interface="eth0", uid=1000).replace(**fields)  # type: ignore[arg-type]
    return trace(ruleset(rules, table), packet, facts).outcome


SAVED = "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"
RESTORED = SAVED.replace("save", "restore")
HASH = "-A OUTPUT -p tcp -j HMARK --hmark-src-prefix 24 --hmark-rnd 0x1 --hmark-mod 10 --hmark-offset 100"


@pytest.mark.parametrize(
    ("behind", "end"),
    [
        ("-m mark --mark 0x64", "UNDECIDED"),
        ("-m mark --mark 0x6d", "UNDECIDED"),
        ("-m mark --mark 0x63", "ACCEPT"),
        ("-m mark --mark 0x6e", "ACCEPT"),
        ("-m mark ! --mark 0x6e", "DROP"),
        ("-m mark ! --mark 0x65", "UNDECIDED"),
        ("-m mark --mark 0x60/0xf0", "DROP"),
        ("-m mark --mark 0x4/0xf", "UNDECIDED"),
        ("-m mark --mark 0xe/0xf", "ACCEPT"),
        ("-m connmark --mark 0x0", "DROP"),
    ],
)
def test_a_mark_that_is_a_hash_decides_where_all_its_values_do(behind: str, end: str) -> None:
    assert ended(f"{HASH}\n-A OUTPUT {behind} -j DROP") == end


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        # What is saved is as unknown as the mark, and restored as well.
        (
            f"{SAVED}\n-m connmark --mark 0x64 -j DROP",
            "UNDECIDED",
        ),
        (f"{SAVED}\n-m connmark --mark 0x1 -j DROP", "ACCEPT"),
        ("-j CONNMARK --save-mark --nfmask 0xf0 --ctmask 0xf0\n-m connmark --mark 0x60 -j DROP", "DROP"),
        (
            f"{SAVED}\n-j MARK --set-xmark 0x0/0xffffffff\n{RESTORED}\n-m mark --mark 0x66 -j DROP",
            "UNDECIDED",
        ),
        # Bits that a rule sets are known, the others not.
        ("-j MARK --set-xmark 0x4000/0x4000\n-m mark --mark 0x4000/0x4000 -j DROP", "DROP"),
        ("-j MARK --set-xmark 0x4000/0x4000\n-m mark --mark 0x4063 -j DROP", "ACCEPT"),
        ("-j MARK --set-xmark 0x4000/0x4000\n-m mark --mark 0x4064 -j DROP", "UNDECIDED"),
        ("-j MARK --set-xmark 0x0/0xf\n-m mark --mark 0x60 -j DROP", "DROP"),
        ("-j MARK --set-xmark 0x0/0x3\n-m mark --mark 0x60 -j DROP", "UNDECIDED"),
        ("-j MARK --set-xmark 0x1/0x0\n-m mark --mark 0x60/0xf0 -j DROP", "DROP"),
        ("-j MARK --set-xmark 0x5/0xffffffff\n-m mark --mark 0x5 -j DROP", "DROP"),
    ],
)
def test_marks_made_from_a_hash(rules: str, end: str) -> None:
    lines = "\n".join(f"-A OUTPUT {line}" for line in rules.splitlines())
    assert ended(f"{HASH}\n{lines}") == end


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        ("-m length --length 100 -j MARK --set-xmark 0x1/0x1\n-m mark --mark 0x1/0x1 -j DROP", "UNDECIDED"),
        ("-m length --length 100 -j MARK --set-xmark 0x1/0x1\n-m mark --mark 0x2/0x2 -j DROP", "ACCEPT"),
        ("-m length --length 100 -j CONNMARK --set-xmark 0x1/0x1\n-m connmark --mark 0x1/0x1 -j DROP", "UNDECIDED"),
        ("-m length --length 100 -j CT --notrack\n-j ACCEPT", "UNDECIDED"),
        ("-j CONNMARK --set-xmark 0x1/0xff --left-shift-mark 3\n-m connmark --mark 0x8 -j DROP", "UNDECIDED"),
        ("-j SET --map-set some dst --map-mark\n-m mark --mark 0x8 -j DROP", "UNDECIDED"),
        ("-j SET --add-set some dst\n-m mark --mark 0x8 -j DROP", "ACCEPT"),
        ("-m socket --restore-skmark\n-m mark --mark 0x8 -j DROP", "UNDECIDED"),
    ],
)
def test_other_marks_that_no_rule_determines(rules: str, end: str) -> None:
    assert ended("\n".join(f"-A OUTPUT {line}" for line in rules.splitlines())) == end


def test_a_set_that_a_rule_changes_is_not_known_behind_it() -> None:
    facts = POD_ADDRESS.replace(ip_sets=(IpSet("some", "hash:ip", "ipv4", ()),))
    match = "-A OUTPUT -m set --match-set some dst -j DROP"
    assert ended(match, facts=facts) == "ACCEPT"
    assert ended(f"-A OUTPUT -j SET --add-set some dst\n{match}", facts=facts) == "UNDECIDED"


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        ("-j DNAT --to-destination 10.9.0.1-10.9.0.9", "ACCEPT"),
        ("-j SNAT --to-source 10.9.0.1-10.9.0.9", "ACCEPT"),
        ("-j REDIRECT", "ACCEPT"),
        ("-p tcp -j REDIRECT --to-ports 8080 --random", "ACCEPT"),
        ("-p tcp -j REDIRECT --to-ports 8000-8999", "ACCEPT"),
    ],
)
def test_a_translation_is_decided_whatever_address_or_port_the_kernel_chooses(rules: str, end: str) -> None:
    hook = "POSTROUTING" if "SNAT" in rules else "OUTPUT"
    assert ended(f"-A {hook} {rules}", "nat", hook) == end


def test_redirect_without_a_port_keeps_it() -> None:
    packet = Packet("OUTPUT", TCP, packed(POD), packed(SERVER), 40000, 80, out_interface="eth0", uid=1000)
    after = trace(ruleset("-A OUTPUT -j REDIRECT", "nat"), packet, POD_ADDRESS).packet
    assert (after.destination, after.destination_port, after.redirected, after.unclear) == (b"\x7f\0\0\1", 80, True, ())


def numbers(each: OpenNumber | int) -> set[int]:
    if isinstance(each, int):
        return {each}
    return {value for value in range(256) if each.can_be(value, 0xFFFFFFFF)}


def test_each_operation_on_unclear_numbers_gives_what_it_gives_for_each_number() -> None:
    """Ranges and masks of 8 bits: nothing that can be is left out, and where one is given, no more than bits allow."""
    chance = Random(1)
    for _ in range(3000):
        low, high = sorted((chance.randrange(256), chance.randrange(256)))
        each: OpenNumber | int = OpenNumber("mark", low, high, "")
        every = set(range(low, high + 1))
        for _ in range(3):
            if not isinstance(each, OpenNumber):
                break
            mask, value = chance.randrange(256), chance.randrange(256)
            answers = {number & mask == value for number in every}
            assert True not in answers or each.can_be(value, mask)
            assert each.must_be(value, mask) <= (answers == {True})
            if not each.bits:
                assert (each.can_be(value, mask), each.must_be(value, mask)) == (True in answers, answers == {True})
            each = each.written(value, mask)
            every = {(number & ~mask) ^ value for number in every}
            assert every <= numbers(each)
        one, other = chance.randrange(256), chance.randrange(256)
        assert {one, other} <= numbers(either("mark", one, other, ""))


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        ("-m set --match-set some dst -j ACCEPT", "ACCEPT"),
        ("-m set --match-set some dst -j DROP", "UNDECIDED"),
        ("-m set --match-set some dst -j DROP\n-j DROP", "DROP"),
        ("-m set --match-set some dst -j SOME\n-j ACCEPT", "ACCEPT"),
        ("-m set --match-set some dst -g SOME\n-j DROP", "UNDECIDED"),
        ("-m set --match-set some dst -j RETURN\n-m set --match-set other dst -j DROP", "UNDECIDED"),
        ("-m set --match-set some dst -j CT --notrack\n-m conntrack --ctstate NEW -j DROP", "UNDECIDED"),
        ("-m set --match-set some dst -j MARK --set-xmark 0x1/0x1\n-m mark --mark 0x1/0x1 -j ACCEPT", "ACCEPT"),
    ],
)
def test_a_rule_that_may_or_may_not_match_leaves_open_what_differs_alone(rules: str, end: str) -> None:
    lines = "\n".join(f"-A OUTPUT {line}" for line in rules.splitlines())
    assert ended(lines) == end


def test_two_ways_join_in_what_they_may_have_made_of_the_packet() -> None:
    rules = "-A POSTROUTING -m set --match-set some dst -j SNAT --to-source 10.9.9.9"
    packet = Packet("POSTROUTING", TCP, packed(POD), packed(SERVER), 40000, 80, out_interface="eth0")
    [source] = trace(ruleset(rules, "nat"), packet, POD_ADDRESS).packet.unclear
    both = [int.from_bytes(packed(each)) for each in (POD, "10.9.9.9")]
    assert all(source.can_be(each, 0xFFFFFFFF) for each in both)
    other = "-A OUTPUT -m set --match-set some dst -j DNAT --to-destination 10.9.9.9"
    assert trace(ruleset(other, "nat"), packet.replace(hook="OUTPUT"), POD_ADDRESS).outcome == "UNDECIDED"


def test_a_hundred_rules_that_may_match_take_no_time() -> None:
    rules = "\n".join(f"-A OUTPUT -m set --match-set some{number} dst -j SOME" for number in range(100))
    assert ended(f"{rules}\n-A SOME -m set --match-set other dst -j RETURN\n-A SOME -j ACCEPT") == "ACCEPT"


@pytest.mark.parametrize(
    ("match", "end"),
    [
        ("-d 10.0.0.3/255.0.0.255", "DROP"),
        ("-d 10.0.0.4/255.0.0.255", "ACCEPT"),
        ("! -s 10.0.0.8/255.0.0.255", "DROP"),
        ("-f", "ACCEPT"),
        ("! -f", "DROP"),
        ("! -i +", "ACCEPT"),
    ],
)
def test_masks_with_holes_and_fragments_are_decided(match: str, end: str) -> None:
    assert ended(f"-A OUTPUT {match} -j DROP") == end


def test_such_conditions_are_printed_as_they_are_read() -> None:
    lines = (
        "-A OUTPUT ! -s 10.0.12.0/255.0.255.0 -d 192.168.0.0/16 -p tcp ! -f -m tcp --dport 80 -j DROP",
        "-A OUTPUT ! -i + -j DROP",
    )
    text = dump(ruleset("\n".join(lines)))
    assert [line for line in text.splitlines() if line.startswith("-A")] == [*lines]
