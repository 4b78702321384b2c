"""Pictures: nothing overlaps, no line crosses a box, all text is in its box, the files are what they claim to be."""

from __future__ import annotations

import pathlib
import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from istio_init.cli.app import main
from istio_init.draw.graph import build_graph
from istio_init.draw.highlight import highlights
from istio_init.draw.layout import CELL, cells, draw
from istio_init.draw.mermaid import mermaid
from istio_init.draw.picture import Rect
from istio_init.draw.svg import svg
from istio_init.model.rules import FAMILIES, Chain, InInterface, Rule, Ruleset, Table, Verdict
from istio_init.model.unknown import Comment
from istio_init.simulate.purposes import purposes
from tests.kit.packets import ARTICLE, SERVER, Sidecar
from tests.kit.strategies import rulesets
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.draw.graph import Graph
    from istio_init.draw.picture import Picture

ENVOY = Sidecar(ARTICLE).envoy
any_rulesets = st.sampled_from(FAMILIES).flatmap(rulesets)


def pictured(arguments: str, family: str = "ipv4") -> Picture:
    return draw(charted(Sidecar(arguments), family))


def charted(sidecar: Sidecar, family: str = "ipv4") -> Graph:
    ruleset = next(ruleset for ruleset in sidecar.plan.rulesets if ruleset.family == family)
    return build_graph(ruleset, purposes(sidecar.options, ruleset.family), sidecar.envoy)


def check_geometry(picture: Picture) -> None:
    """Every box of its own, every text in its box, every line around the boxes."""
    solid = [box.rect for box in picture.boxes] + [end.rect for end in picture.ends] + [h.rect for h in picture.heads]
    for at, one in enumerate(solid):
        assert one.x >= 0
        assert one.y >= 0
        assert one.right <= picture.width
        assert one.bottom <= picture.height
        assert not any(overlap(one, other) for other in solid[at + 1 :])
    for band in picture.bands:
        assert all(inside(box.rect, band.rect) for box in picture.boxes if box.box.table == band.name)
    for box in picture.boxes:
        assert box.title.x + cells(box.title.text) * CELL <= box.rect.right
        for row in box.rows:
            assert inside(row.rect, box.rect)
            ends = row.action.x - row.action.width
            assert row.condition.x >= row.number.x + 2
            assert row.condition.x + cells(row.condition.text) * CELL <= ends
            assert cells(row.action.text) * CELL <= row.action.width
            assert row.action.x <= row.rect.right
    for line in picture.lines:
        for (x1, y1), (x2, y2) in pairwise(line.points):
            assert x1 == x2 or y1 == y2
            leg = Rect(min(x1, x2), min(y1, y2), abs(x1 - x2), abs(y1 - y2))
            assert not any(overlap(leg, rect) for rect in solid)


def overlap(one: Rect, other: Rect) -> bool:
    """Whether two rectangles share more than an edge; a line is one without width or height."""
    return one.x < other.right and other.x < one.right and one.y < other.bottom and other.y < one.bottom


def inside(one: Rect, other: Rect) -> bool:
    return other.x <= one.x and one.right <= other.right and other.y <= one.y and one.bottom <= other.bottom


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_a_picture_in_which_nothing_overlaps(name: str) -> None:
    sidecar = Sidecar(shlex.join(argv(name)))
    for ruleset in sidecar.plan.rulesets:
        picture = draw(build_graph(ruleset, purposes(sidecar.options, ruleset.family), sidecar.envoy))
        check_geometry(picture)
        assert sum(len(c.rules) for t in ruleset.tables for c in t.chains) == sum(
            1 for box in picture.boxes for row in box.rows if row.row.number
        )


@settings(max_examples=40)
@given(ruleset=any_rulesets)
def test_any_rules_have_a_picture(ruleset: Ruleset) -> None:
    picture = draw(build_graph(ruleset, {}, ENVOY))
    check_geometry(picture)
    root = ET.fromstring(svg(picture))  # noqa: S314 (made here)
    drawn = {element.get("data-key") for element in root.iter() if element.get("class", "").startswith("row")}
    assert drawn == {row.row.key for box in picture.boxes for row in box.rows}


def test_lines_to_different_targets_share_no_track() -> None:
    picture = pictured(f"{ARTICLE} -m TPROXY --redirect-dns --dns-servers 10.0.0.10 --drop-invalid")
    check_geometry(picture)
    tracks = [
        ((one.points[1][0], one.target), (one.points[1], one.points[2]))
        for one in picture.lines
    ]  # fmt: skip
    for (x, target), (top, bottom) in tracks:
        for (other_x, other), (begin, end) in tracks:
            if target != other and x == other_x:
                assert bottom[1] <= begin[1] or end[1] <= top[1]


def test_the_nine_rules_are_marked_also_where_they_have_other_numbers() -> None:
    picture = pictured(f"{ARTICLE} -o 22,25")
    marks = {row.row.number: row.nine.text for box in picture.boxes for row in box.rows if row.nine}
    assert marks == dict(zip((1 + 4, *range(6, 14)), "123456789", strict=True))
    for box in picture.boxes:
        for row in box.rows:
            if row.nine:
                assert row.nine.x + 16.5 <= row.condition.x


def links(arguments: str) -> dict[str, str]:
    return charted(Sidecar(arguments)).links


def test_rules_lead_to_where_packets_go() -> None:
    actual = links(ARTICLE)
    assert actual["nat/ISTIO_OUTPUT/1"] == actual["nat/ISTIO_OUTPUT/8"] == "end/alone/OUTPUT"
    assert actual["nat/ISTIO_OUTPUT/2"] == "nat/ISTIO_IN_REDIRECT"
    assert actual["nat/ISTIO_OUTPUT/9"] == "nat/ISTIO_REDIRECT"
    assert actual["nat/ISTIO_REDIRECT/1"] == "end/outbound"
    assert actual["nat/ISTIO_IN_REDIRECT/1"] == "end/inbound"
    assert actual["nat/ISTIO_INBOUND/1"] == "end/alone/PREROUTING"
    # Called from two hooks: what it leaves goes on in more than one way.
    assert "nat/ISTIO_IN_REDIRECT/0" not in actual
    tproxy = links(f"{ARTICLE} -m TPROXY --drop-invalid")
    assert tproxy["mangle/ISTIO_TPROXY/1"] == "end/inbound"
    assert tproxy["mangle/ISTIO_DROP/1"] == "end/dropped"
    # Behind the jump PREROUTING has another rule, so that a RETURN is no end.
    assert "mangle/ISTIO_INBOUND/1" not in tproxy


def test_a_way_is_what_the_packet_met() -> None:
    sidecar = Sidecar(ARTICLE)
    drawing = charted(sidecar)
    first, second = highlights(sidecar.path(sidecar.outbound(SERVER, 443)), drawing)
    assert first.hit == {"nat/OUTPUT/1", "nat/ISTIO_OUTPUT/9", "nat/ISTIO_REDIRECT/1"} == first.links
    assert first.tried == {f"nat/ISTIO_OUTPUT/{number}" for number in range(1, 9)}
    assert "end/outbound" in first.reached
    assert not any(key.startswith("end/alone") for key in first.reached)
    assert second.hit == {"nat/OUTPUT/1", "nat/ISTIO_OUTPUT/4"}
    assert "end/alone/OUTPUT" in second.reached


def test_a_way_through_several_tables_ends_once() -> None:
    sidecar = Sidecar(f"{ARTICLE} -m TPROXY")
    first, second = highlights(sidecar.path(sidecar.inbound(9080)), charted(sidecar))
    assert {key for key in first.reached if key.startswith("end/")} == {"end/inbound"}
    assert {key for key in second.reached if key.startswith("end/")} == {"end/alone/PREROUTING", "end/alone/OUTPUT"}


def test_hostile_text_is_text() -> None:
    nasty = '<script>alert(1)</script>&"\x01\u202e'
    rules = (
        Rule((Comment(nasty),), Verdict("ACCEPT")),
        Rule((InInterface("<img/src=x>"), Comment("漢" * 80)), Verdict("DROP")),
    )
    ruleset = Ruleset("ipv4", (Table("mangle", (Chain("PREROUTING", rules, "ACCEPT"), Chain("<b>", (), None))),))
    picture = draw(build_graph(ruleset, {}, ENVOY))
    check_geometry(picture)
    root = ET.fromstring(svg(picture))  # noqa: S314 (made here)
    assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "img", "b"})
    assert any(nasty[:25] in (element.text or "") for element in root.iter())


MERMAID = re.compile(
    r"""flowchart[ ]LR|[ ]{2}end|%%[{]init:[ ][{]'flowchart':[ ][{]'wrappingWidth':[ ]700[}]{3}%%
    |[ ]{2}subgraph[ ]h\d+\["[\w ]+"\]
    |[ ]+n\d+\["(?:[^"<>]|<b>|</b>|<br/>)+"\]
    |[ ]{2}n\d+\(\["[^"<>]+<br/>[^"<>]+"\]\)
    |[ ]{2}n\d+[ ]--[ ]"[\w, ]+"[ ]-->[ ]n\d+
    |[ ]{2}(classDef|class|linkStyle)[ ][\w,]+[ ][\w:#,-]+""",
    re.VERBOSE,
)


@pytest.mark.parametrize("name", CASES)
def test_mermaid_has_no_other_lines_than_its_grammar(name: str) -> None:
    sidecar = Sidecar(shlex.join(argv(name)))
    drawing = charted(sidecar)
    lit = highlights(sidecar.path(sidecar.outbound(SERVER, 443)), drawing)
    for line in mermaid(drawing, lit).splitlines():
        assert MERMAID.fullmatch(line), line


@settings(max_examples=40)
@given(ruleset=any_rulesets)
def test_mermaid_of_any_rules_keeps_to_its_grammar(ruleset: Ruleset) -> None:
    text = mermaid(build_graph(ruleset, {}, ENVOY))
    assert all(MERMAID.fullmatch(line) for line in text.splitlines())


QUIET = {"ENVOY_USER": "0"}


@pytest.mark.parametrize(
    ("question", "flag"),
    [
        ("--format png", "--format"),
        ("--family ipv5", "--ip-family"),
        ("--to 1.2.3.4", "--from, --to"),
        ("--outbound --inbound", "--outbound, --inbound"),
        ("--outbound --to ::1 --family ipv4", "--ip-family"),
        ("--outbound --protocol tpc", "--protocol"),
        ("--pid 1 --container 3f2a9c417d0e", ""),
        ("--file /nowhere/at/all.svg", "--file"),
    ],
)
def test_what_can_not_be_drawn_is_one_line(capsys: pytest.CaptureFixture[str], question: str, flag: str) -> None:
    code = main(["draw", *question.split()], QUIET)
    out, err = capsys.readouterr()
    assert code
    assert not out
    assert err.startswith(f"istio-init: {flag}")
    assert err.count("\n") == 1


def test_the_picture_in_the_docs_is_the_one_that_the_command_draws(tmp_path: pathlib.Path) -> None:
    docs = pathlib.Path(__file__).parents[2] / "docs"
    commands = [line for line in (docs / "draw.md").read_text().splitlines() if line.startswith("$ istio-init draw")]
    for command in commands:
        words = shlex.split(command)[2:]
        kept = docs / words[-1]
        words[-1] = str(tmp_path / kept.name)
        assert main(words, QUIET) == 0
        assert (tmp_path / kept.name).read_text() == kept.read_text()
    assert len(commands) == 2


def test_the_packets_family_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["draw", "-u", "1337", "-i", "*", "--format", "dot"]
    assert main([*drawn, "--outbound", "--to", "[2001:db8:9::1]:443"], QUIET) == 0
    assert capsys.readouterr().out.startswith("digraph ipv6 {")
    assert main([*drawn, "--inbound", "--family", "ipv6"], QUIET) == 0
    assert capsys.readouterr().out.startswith("digraph ipv6 {")
