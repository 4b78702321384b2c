"""The table of docs/capture-cost.md can be made, and what in it does not depend on the machine is so."""

from __future__ import annotations

from integration.containers.engine import ROOT
from integration.cost.capture import WAYS, measure, table


def test_each_way_is_measured_and_conntrack_counts_what_rules_look_at() -> None:
    measured = measure(rounds=1, requests=20)
    for direction, result in measured.items():
        assert len(result.seconds) == 20
        # Without a rule nothing asks for conntrack; with rules each connection is in it once, at least.
        assert (result.entries == 0) == (direction.mesh == "none"), direction
        assert result.entries == 0 or result.entries >= 1, direction
    text = table(measured)
    assert [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[2:]] == [
        direction.title for direction in WAYS
    ]


def test_the_page_has_each_way() -> None:
    page = (ROOT / "docs/capture-cost.md").read_text()
    assert [direction.title for direction in WAYS if f"| {direction.title} |" not in page] == []
