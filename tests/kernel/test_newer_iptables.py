"""Rules as iptables-nft 1.8.11 writes them: recorded from the kernel, read, and printed as that version saves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init.formats.iptables_save import rule_text
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.nft.compat_decode import RuleReader
from istio_init.kernel.nft.compat_encode import RuleWriter
from istio_init.kernel.nft.expressions import (
    EXPRESSIONS,
    L4PROTO,
    MARK,
    UNREAD,
    compare,
    expression,
    load_ct,
    load_data,
    load_meta,
    load_payload,
    look_up,
    mask,
    set_meta,
    verdict,
)
from istio_init.model.extensions import Mark
from istio_init.model.rules import IPV4, IPV6, TCP, Protocol, Verdict
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from tests.kernel.newer_iptables import Recorded, recorded

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Rule

ALL = recorded()
ACCEPT = verdict(1)
IS_TCP = load_meta(L4PROTO) + compare(bytes((TCP,)))
MARKED = load_meta(MARK) + compare(b"\1\0\0\0")
ESTABLISHED = load_ct(0) + mask(b"\2\0\0\0") + compare(bytes(4), negated=True)


def read(expressions: bytes, family: Family = IPV4) -> Rule:
    return RuleReader(family).unpack({EXPRESSIONS: expressions})


def name(each: Recorded) -> str:
    return f"{each.family}: {each.saved}"


@pytest.mark.parametrize("each", ALL, ids=name)
def test_it_is_printed_as_that_version_saves_it(each: Recorded) -> None:
    chain = each.saved.split()[1]
    assert f"-A {chain} {rule_text(read(each.expressions, each.family))}".strip() == each.saved


@pytest.mark.parametrize("each", ALL, ids=name)
def test_what_is_written_again_is_the_same_rule(each: Recorded) -> None:
    """In this program's own spelling, as iptables-nft 1.8.9 has it."""
    rule = read(each.expressions, each.family)
    before, after, _ = RuleWriter(each.family).content(rule)
    counted = attribute(1, bytes(8)) + attribute(2, bytes(8))
    assert read(attributes(before + counted + after)[EXPRESSIONS], each.family) == rule


@pytest.mark.parametrize("each", ALL, ids=name)
def test_a_rule_without_one_of_its_expressions_is_read_too(each: Recorded) -> None:
    """It is no rule of iptables-nft; nothing is raised, and it says no less than its expressions."""
    elements = list(apart(each.expressions))
    for at in range(len(elements)):
        rule = read(b"".join(elements[:at] + elements[at + 1 :]), each.family)
        if len(elements) > 2:
            assert rule.matches or rule.target != Verdict("")


def apart(expressions: bytes) -> list[bytes]:
    """A list of expressions, each with its head."""
    result = []
    while expressions:
        length = (int.from_bytes(expressions[:2], "little") + 3) & ~3
        result.append(expressions[:length])
        expressions = expressions[length:]
    return result


@pytest.mark.parametrize(
    ("condition", "kinds"),
    [
        (ESTABLISHED, "ct bitwise cmp"),
        (load_payload(2, 2, 2) + look_up("__set0", negated=False), "payload lookup"),
        (load_payload(1, 1, 1) + mask(b"\x0c") + compare(b"\4"), "payload bitwise cmp"),
        (load_meta(L4PROTO) + compare(b"\0"), "meta cmp"),
        (load_meta(MARK) + compare(b"\1\0\0\0", operator=5), "meta cmp"),
    ],
)
def test_what_iptables_has_no_match_for_leaves_the_others_known(condition: bytes, kinds: str) -> None:
    for whole in (condition + IS_TCP + MARKED, IS_TCP + condition + MARKED, IS_TCP + MARKED + condition):
        rule = read(whole + ACCEPT)
        unknown = UnknownMatch(f"{UNREAD} {kinds}", 0, condition)
        assert rule.target == Verdict("ACCEPT")
        assert rule.matches[0] == Protocol(TCP)
        assert set(rule.matches[1:]) == {Mark(1), unknown}


@pytest.mark.parametrize(
    "conditions",
    [
        IS_TCP + look_up("__set0", negated=False),  # of what an expression before its own loaded
        IS_TCP + load_data(b"\1\0\0\0") + set_meta(MARK) + MARKED,
        IS_TCP + load_meta(MARK),
        IS_TCP + expression("quota", b""),
        load_payload(2, 2, 2) + compare(b"\0\x50"),  # a port without a protocol
        load_payload(2, 13, 1) + mask(b"\2") + compare(b"\2"),  # flags without a protocol
    ],
)
def test_what_cannot_be_taken_apart_is_one_unknown_match(conditions: bytes) -> None:
    rule = read(conditions + ACCEPT)
    [match] = rule.matches
    assert isinstance(match, UnknownMatch)
    assert (match.name.split()[0], match.data, rule.target) == (UNREAD, conditions, Verdict("ACCEPT"))


def test_an_effect_that_is_no_target_of_iptables_is_not_lost() -> None:
    effect = load_data(b"\1\0\0\0") + set_meta(MARK)
    assert read(IS_TCP + effect) == read(IS_TCP).replace(target=UnknownTarget(f"{UNREAD} meta", 0, effect))
    address = load_data(b"\n\0\0\1") + expression("nat", b"")
    assert read(IS_TCP + address).target == UnknownTarget(f"{UNREAD} nat", 0, address)
    assert read(address).matches == ()


def test_ipv6_has_no_protocol_at_the_place_of_ipv4() -> None:
    rule = read(load_payload(1, 9, 1) + compare(b"\6") + ACCEPT, IPV6)
    assert [type(each) for each in rule.matches] == [UnknownMatch]
