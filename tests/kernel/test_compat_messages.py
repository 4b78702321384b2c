"""iptables-nft's tables as messages: long runs are packed as their rules are, and a dump is compared as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.kernel.netlink import batch
from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import NEWCHAIN, NEWRULE, NFPROTO_IPV4, NFT_NAME, RULE_CHAIN, body, text
from istio_init.kernel.nft.compat_dump import RULE_HANDLE, _same_rules
from istio_init.kernel.nft.compat_encode import COUNTS, SIGNED, RuleWriter
from istio_init.kernel.nft.compat_refusal import message_at
from istio_init.kernel.nft.compat_run import RunContents
from istio_init.model.parsers import masked
from istio_init.model.rules import (
    IPV4,
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    Jump,
    Network,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Run,
    Verdict,
)
from istio_init.model.unknown import Comment

if TYPE_CHECKING:
    from istio_init.kernel.netlink.batch import Message
    from istio_init.kernel.nft.compat_run import Content
    from istio_init.model.rules import Family, Target

RETURN = Verdict("RETURN")


@st.composite
def networks(draw: st.DrawFn) -> tuple[Family, Run]:
    """A run of networks of one family, of any prefix but 0."""
    family: Family = draw(st.sampled_from(["ipv4", "ipv6"]))
    size = 4 if family == IPV4 else 16
    pairs = draw(st.lists(st.tuples(st.binary(min_size=size, max_size=size), st.integers(1, 8 * size)), min_size=1))
    values = tuple(Network(masked(address, prefix), prefix) for address, prefix in pairs)
    more = draw(st.sampled_from([(), (Protocol(TCP),), (Owner("uid", 7, 7), Comment("why"))]))
    targets: list[Target] = [RETURN, Jump("ISTIO_REDIRECT"), Redirect(PortRange(15001, 15001))]
    target = draw(st.sampled_from(targets))
    return family, Run((Rule((Destination(values[0]), *more), target, True),), values)


@st.composite
def ports(draw: st.DrawFn) -> tuple[Family, Run]:
    """A run of ports and ranges, with one rule or two for each."""
    number = st.sampled_from([0, 1, 255, 256, 65534, 65535]) | st.integers(0, 65535)
    pairs = draw(st.lists(st.tuples(number, number), min_size=1))
    same = draw(st.booleans())
    values = tuple(PortRange(min(pair), min(pair) if same else max(pair)) for pair in pairs)
    unit = tuple(Rule((Protocol(each), DestinationPorts(values[0])), RETURN, True) for each in (TCP, UDP))
    return draw(st.sampled_from(["ipv4", "ipv6"])), Run(unit[: draw(st.integers(1, 2))], values)


@given(networks() | ports())
def test_a_run_is_packed_as_its_rules_are(pair: tuple[Family, Run]) -> None:
    family, run = pair
    writer = RuleWriter(family)
    assert list(RunContents(run, writer.content)) == [writer.content(rule) for rule in run.rules()]


@given(networks() | ports(), st.sampled_from([(), ((NEWCHAIN, 7, b"before"),)]), st.booleans(), st.integers(1, 4))
def test_a_run_is_sent_as_its_rules_are(
    pair: tuple[Family, Run], before: tuple[Message, ...], alone: bool, block: int
) -> None:
    """However many are put together at once; only the last message of all asks for an answer."""
    family, run = pair
    behind: tuple[Message, ...] = () if alone else ((NEWRULE, 7, b"next"),)
    at_once = RunContents(run, RuleWriter(family).content).messages(NEWRULE, 3, b"ABCD", COUNTS, SIGNED)
    single = [(NEWRULE, 3, b"ABCD" + RuleWriter(family).pack(rule)) for rule in run.rules()]
    count = len(before) + len(run) + len(behind)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "_BLOCK", block)
        buffers = batch._buffers((*before, at_once, *behind), 5, 4 + count)
        assert b"".join(buffers) == b"".join(batch._buffers((*before, *single, *behind), 5, 4 + count))
    one_by_one = [message_at((*before, at_once, *behind), number) for number in range(-1, count + 1)]
    assert one_by_one == [None, *before, *single, *behind, None]


CHAIN = "ISTIO_OUTPUT"
VALUES = tuple(Network(bytes((n, 0, 0, 0)), 8) for n in range(1, 24))
DESIRED = Chain.of(
    CHAIN,
    (
        Rule((Protocol(TCP),), Jump("ISTIO_REDIRECT"), True),
        Run((Rule((Destination(VALUES[0]),), RETURN, True),), VALUES),
    ),
)


def dumped(content: Content, *, counts: int = 5, signed: bytes = SIGNED, chain: str = CHAIN, handle: int = 1) -> bytes:
    """A rule as the kernel dumps it."""
    before, after, _ = content
    numbers = attribute(1, counts.to_bytes(8, "big")) + attribute(2, counts.to_bytes(8, "big"))
    names = text(NFT_NAME, "nat") + text(RULE_CHAIN, chain)
    place = attribute(RULE_HANDLE, bytes(7) + bytes((handle,))) + attribute(6, bytes(8)) * (handle > 1)
    return body(NFPROTO_IPV4, names, place, before, numbers, after, signed)


def dump(contents: list[Content]) -> list[bytes]:
    return [dumped(each, handle=number) for number, each in enumerate(contents, 1)]


def same(result: list[bytes]) -> bool:
    return _same_rules(result, "nat", {CHAIN: RuleWriter(IPV4).contents(DESIRED.parts), "ISTIO_INBOUND": []})


def test_long_runs_alone_are_packed_at_once() -> None:
    kinds = [type(each) for each in RuleWriter(IPV4).contents((*DESIRED.parts, Run(DESIRED.rules[1:2], VALUES[:3])))]
    assert kinds == [tuple, RunContents, tuple, tuple, tuple]


def test_what_was_written_is_recognised_whatever_was_counted() -> None:
    contents = [RuleWriter(IPV4).content(rule) for rule in DESIRED.rules]
    assert same(dump(contents))
    assert same([dumped(each, counts=number, handle=number) for number, each in enumerate(contents, 1)])


@pytest.mark.parametrize("number", [0, 1, 12, 23])
def test_whatever_differs_is_seen(number: int) -> None:
    contents = [RuleWriter(IPV4).content(rule) for rule in DESIRED.rules]
    actual = dump(contents)
    whole = actual[number]
    before, after, _ = contents[number]
    for other in (
        dumped(contents[number], signed=b""),
        dumped(contents[number], chain="ISTIO_INBOUND"),
        dumped((before + after, b"", b"")),
        dumped((before, after + after, b"")),
        *(
            whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :]
            for at in range(whole.index(before), whole.index(before) + len(before))
        ),
        whole[:-1],
        b"",
    ):
        assert not same([*actual[:number], other, *actual[number + 1 :]])
    assert not same(actual[:number] + actual[number + 1 :])
    assert not same([*actual, whole])
    assert not same([*actual[1:], actual[0]])
