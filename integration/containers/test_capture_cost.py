"""The tables of docs/capture-cost.md can be made, and what in them does not depend on the machine is so."""

from __future__ import annotations

from integration.containers.engine import ROOT
from integration.cost import nature
from integration.cost.capture import SCENARIOS, costs, measure, table, written
from integration.cost.pods import running

WITHOUT_RULES = {"none", "ebpf", "ebpf-tproxy"}


def test_each_way_is_measured_and_each_kind_of_capture_is_what_it_is() -> None:
    with running() as meshes:
        measured = measure(meshes, rounds=1, requests=20)
        natures = {name: nature.nature_of(mesh) for name, mesh in meshes.items()}
    for row, result in measured.items():
        assert [len(each) for each in result.seconds] == [20]
        assert result.processor[0] > 0
        # Without a rule nothing asks for conntrack; with rules each connection is in it once, at least.
        assert (result.entries == 0) == (row.mesh in WITHOUT_RULES), row
        assert result.entries == 0 or result.entries >= 1, row
    for name, each in natures.items():
        assert (each.rules == 0) == (name in WITHOUT_RULES), name
        assert each.undone == (name not in WITHOUT_RULES - {"none"}), name
        # One entry for what the caller opens, one for what Envoy opens.
        assert each.entries == (0, 0) if name in WITHOUT_RULES else min(each.entries) >= 1, (name, each)
    text = table(measured)
    assert [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[2:]] == [
        row.title for row in SCENARIOS
    ]
    assert nature.table(natures, costs(measured)).startswith(nature.HEAD)


def test_a_table_is_written_where_it_was() -> None:
    page = "| a |\n| - |\n\nb\n\n| c |\n| - |\n"
    assert written(page, "| n |", lambda line: line.startswith("| c")) == "| a |\n| - |\n\nb\n\n| n |\n"
    assert written(page, "| n |", lambda line: line.startswith("| d")) == page


def test_the_page_has_each_way() -> None:
    page = (ROOT / "docs/capture-cost.md").read_text()
    assert [row.title for row in SCENARIOS if f"| {row.title} |" not in page] == []
