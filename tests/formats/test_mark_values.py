"""What nft gives a mark, in the text of its listing and in the kernel's expressions, as targets of iptables."""

from __future__ import annotations

import pytest

from istio_init.formats.nft.dump_reader import rules_of
from istio_init.model.extensions import RestoreMark, SaveMark, SetMark
from istio_init.model.foreign import AnyMark, SetConnMark
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.simulate.foreign_targets import effect_of


def target(line: str) -> object:
    """What a line of a listing does."""
    [rule] = rules_of(line, "ipv4", {})
    return effect_of(rule.target) if isinstance(rule.target, UnknownTarget) else rule.target


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("meta mark set 0x00000007", SetMark(7)),
        ("meta mark set meta mark | 0x00004000", SetMark(0x4000, 0x4000)),
        ("meta mark set mark or 0x4000", SetMark(0x4000, 0x4000)),
        ("meta mark set meta mark ^ 0x00004000", SetMark(0x4000, 0)),
        ("meta mark set meta mark & 0xffff00ff", SetMark(0, 0xFF00)),
        ("meta mark set meta mark & 0xff00ffff | 0x00040000", SetMark(0x40000, 0xFF0000)),
        ("meta mark set ct mark", RestoreMark()),
        ("meta mark set ct mark & 0x000000ff", RestoreMark(0xFFFFFFFF, 0xFF)),
        ("ct mark set meta mark", SaveMark()),
        ("ct mark set mark & 0x00ff0000", SaveMark(0xFF0000)),
        ("ct mark set 0x00000005", SetConnMark(5, 0xFFFFFFFF)),
        ("ct mark set ct mark | 0x00000080", SetConnMark(0x80, 0x80)),
        ("meta mark set numgen inc mod 4 offset 100", AnyMark("mark", 100, 103, "a hash or chance")),
        ("meta mark set symhash mod 2", AnyMark("mark", 0, 1, "a hash or chance")),
        (
            "ct mark set jhash ip saddr . tcp dport mod 16 seed 0x5 offset 1",
            AnyMark("connmark", 1, 16, "a hash or chance"),
        ),
    ],
)
def test_a_mark_is_set_by_the_target_that_does_the_same(line: str, expected: object) -> None:
    assert target(line) == expected


@pytest.mark.parametrize(
    "line", ["meta mark set 0x7 accept", "meta mark set ct mark | 0x1", "meta mark set jhash ip saddr mod 4 & 0x1"]
)
def test_what_iptables_has_no_target_for_is_not_known(line: str) -> None:
    [rule] = rules_of(line, "ipv4", {})
    assert isinstance(rule.target, UnknownTarget)
    assert "is not known" in getattr(effect_of(rule.target), "words")  # noqa: B009 (one of several kinds has it)


def test_of_a_line_that_ends_in_a_verdict_only_the_condition_is_not_known() -> None:
    [rule] = rules_of("tcp dport 80 tcp option maxseg size 500 drop", "ipv4", {})
    assert isinstance(rule.matches[-1], UnknownMatch)
    assert rule.target == rules_of("drop", "ipv4", {})[0].target
