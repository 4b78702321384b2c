"""The diff of `plan`: what it says of both sides is what exists and what is to exist, nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from istio_init.formats.iptables_save import dump_table
from istio_init.inspect.diff import folded, hunks
from istio_init.model.compare import TableChange
from istio_init.model.placement import merged
from istio_init.model.rules import IPV4, Ruleset, Table, ordered
from istio_init.planning.changes import Changes
from tests.kit.strategies import tables, wanted_tables

if TYPE_CHECKING:
    from istio_init.inspect.diff import DiffLine
    from istio_init.model.alignment import Sign


def chains(table: Table) -> dict[str, list[str]]:
    """A table's lines by chain, built-in chains' policies left out."""
    result: dict[str, list[str]] = {}
    for line in dump_table(table).split("\n")[1:-2]:
        words = line.split()
        if line.startswith(":") and words[1] == "-":
            result[words[0][1:]] = [line]
        elif not line.startswith(":"):
            result.setdefault(words[1], []).append(line)
    return result


@given(tables(IPV4, "nat"), st.none() | wanted_tables(IPV4, "nat"), st.booleans())
def test_both_sides(table: Table, desired: Table | None, there: bool) -> None:
    standing = table if there else Table("nat", ordered("nat", {}))
    change = TableChange(IPV4, "nat", desired, desired)
    ruleset = Ruleset(IPV4, (table,) if there else ())
    before, after = chains(standing), chains(standing)
    for hunk in hunks((ruleset,), Changes((), (change,), (), "")):
        assert [text for sign, text in hunk.lines if sign != "+"] == before.get(hunk.chain, [])
        after.pop(hunk.chain, None)
        if kept := [text for sign, text in hunk.lines if sign != "-"]:
            after[hunk.chain] = kept
        assert any(sign != " " for sign, _ in hunk.lines)
    assert after == chains(merged(standing, desired))


signs: st.SearchStrategy[Sign] = st.sampled_from([" ", " ", " ", "+", "-"])


@given(st.lists(signs, max_size=40))
def test_folding_leaves_out_only_lines_that_stay(drawn: list[Sign]) -> None:
    lines: tuple[DiffLine, ...] = tuple((sign, str(number)) for number, sign in enumerate(drawn))
    unfolded: list[str] = []
    for sign, text in folded(lines):
        if text.startswith("..."):
            count = int(text.split()[1])
            left_out = lines[len(unfolded) : len(unfolded) + count]
            assert {each for each, _ in left_out} == {" "}
            unfolded += [text for _, text in left_out]
        else:
            assert lines[len(unfolded)] == (sign, text)
            unfolded.append(text)
    assert len(unfolded) == len(lines)


def test_three_unchanged_lines_are_kept_on_the_sides_of_a_change_that_have_one() -> None:
    lines: tuple[DiffLine, ...] = tuple(("-" if number == 10 else " ", str(number)) for number in range(21))
    shown = ["... 7 unchanged lines", "7", "8", "9", "10", "11", "12", "13", "... 7 unchanged lines"]
    assert [text for _, text in folded(lines)] == shown
