"""The table of first packets in docs/backends.md can be made, and each way in it is what it says."""

from __future__ import annotations

from integration.cost.packet import COUNTS, NO_RULES, Scenario, measure, table
from integration.kit.backends import BACKENDS
from integration.kit.program import ROOT

HEADING = f"| excluded networks | {' | '.join(BACKENDS)} |"


def test_each_way_is_measured_and_its_rules_are_met() -> None:
    measured = measure(counts=(10, 20), rounds=2, packets=5)
    assert measured.keys() == {NO_RULES, *(Scenario(backend, count) for backend in BACKENDS for count in (10, 20))}
    for direction, result in measured.items():
        assert len(result.seconds) == 10
        # Without a rule nothing asks for conntrack; with rules each packet begins a connection.
        assert result.entries == (10 if direction.backend else 0), direction
    lines = table(measured).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == ["excluded networks", "---", "10", "20"]
    assert lines[0] == HEADING


def test_the_page_has_each_count() -> None:
    page = (ROOT / "docs/backends.md").read_text()
    rows = page.partition(HEADING)[2].partition("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {count:,}" for count in COUNTS]
