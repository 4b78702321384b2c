"""The live page without a terminal: keys, rates and what a screen of any size has room for."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from istio_init.cli.verbs.watch import keys
from istio_init.cli.verbs.watch_page import HINT, KEYS, LivePage, amount
from istio_init.formats.iptables_list import Columns
from istio_init.inspect.snapshot import Snapshot
from istio_init.inspect.table_view import ChainRows, RuleRow, TableRows
from istio_init.model.counters import Count
from istio_init.simulate.purposes import Purpose


def snapshot(packets: tuple[int | None, ...], findings: tuple[str, ...] = ()) -> Snapshot:
    """A chain of so many rules, of which each has so many packets."""
    columns = Columns("RETURN")
    rows = tuple(
        RuleRow(
            number, None if count is None else Count(count, count * 100), columns, f"-p tcp --dport {number} -j RETURN",
            "in place", (Purpose("", f"the purpose of rule {number}"),),
        )
        for number, count in enumerate(packets, 1)
    )  # fmt: skip
    table = TableRows("ipv4", "nat", (ChainRows("ISTIO_OUTPUT", rows),))
    return Snapshot("in place", "legacy", "so", findings, (("legacy", table),), (), None, None)


def drawn(page: LivePage, width: int = 80, height: int = 24) -> list[str]:
    """The page's lines on a screen of this size."""
    text = io.StringIO()
    Console(file=text, width=width, height=height, color_system=None).print(page.render(width, height))
    return text.getvalue().splitlines()


def shown(*packets: tuple[int | None, ...]) -> LivePage:
    """A page that saw these, a second after each other."""
    page = LivePage()
    for second, counts in enumerate(packets):
        page.update(snapshot(counts), float(second * 2))
    return page


def rates(page: LivePage) -> list[float | None]:
    return [entry.packets for entry in page.visible()]


def test_a_rate_is_what_came_between_two_looks() -> None:
    assert rates(shown((0, 5))) == [None, None]
    assert rates(shown((0, 5), (7, 5))) == [3.5, 0]
    # Counters that went back were set to zero: no rate is known.
    assert rates(shown((9, 9), (0, 10))) == [None, 0.5]
    assert rates(shown((9,), (None,))) == [None]


def test_keys_select_filter_sort_and_pause() -> None:
    page = shown((0, 0, 0), (0, 8, 2))

    def pressed(*some: str) -> int:
        assert all(page.press(key) for key in some)
        chosen = page.selected()
        return chosen.row.number if chosen else 0

    assert pressed() == 1
    assert pressed("down", "j", "down", "down") == 3
    assert pressed("home") == 1
    assert pressed("end") == 3
    assert pressed("up", "k", "k") == 1
    # The selected rule stays selected where another order has it elsewhere.
    assert pressed("down", "s") == 2
    assert [entry.row.number for entry in page.visible()] == [2, 3, 1]
    assert pressed("s") == 2
    assert pressed("/", *"Purpose rule q3", "enter") == 0
    assert pressed("/", *"RULE 3x", "backspace", "enter") == 3
    assert page.filter == "RULE 3"
    assert pressed("escape") == 2
    assert pressed(" ") == 2
    assert page.paused
    assert pressed("/", "q", "escape", "no such key", "page down") == 3
    assert not page.press("q")


@pytest.mark.parametrize("width", [20, 40, 59, 60, 75, 76, 80, 200])
@pytest.mark.parametrize("height", [6, 12, 24, 60])
def test_a_screen_of_any_size_is_filled_and_not_more(width: int, height: int) -> None:
    page = shown((0,) * 50, (3,) * 50)
    page.press("end")
    helping = shown((0,) * 50, (3,) * 50)
    helping.press("?")
    assert len(drawn(helping, width, height)) <= max(height, 10)
    lines = drawn(page, width, height)
    assert len(lines) <= max(height, 10)
    assert max(map(len, lines)) <= width
    assert any(line.startswith(("ipv4 nat", "ISTIO", "IST", "ipv4")) for line in lines)
    assert ("bytes/s" in " ".join(lines)) == (width >= 60)


def test_help_and_hints() -> None:
    page = shown((1,))
    assert drawn(page)[-1].startswith(HINT)
    page.press("?")
    assert "select a rule" in " ".join(drawn(page, 100))
    assert {"/", "s", "space", "?"} <= KEYS.keys()
    page.press("/")
    assert "escape" in drawn(page)[-1]


def test_what_is_not_in_place_is_said_and_what_others_wrote_is_escaped() -> None:
    page = LivePage()
    page.update(snapshot((0,), ("first\x1b[31m", "second")), 0.0)
    lines = drawn(page)
    assert "first\\x1b[31m; and 1 more" in lines[1]
    page.press("/")
    assert all(page.press(key) for key in "[bold]\x1b")
    assert "\x1b" not in "".join(drawn(page))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"), (0, "0"), (0.04, "0.0"), (2.5, "2.5"), (12.5, "12"), (9999, "9999"), (10000, "10k"),
        (12_345_678, "12346k"), (2**70, "1180591621T"),
    ],
)  # fmt: skip
def test_amounts(number: float | None, text: str) -> None:
    assert amount(number) in {text, text.replace("12346k", "12M")}


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (b"\x1b[A\x1bOBj", ["up", "down", "j"]),
        (b"\x1b[5~\x1b[F", ["page up", "end"]),
        (b"\x1b", ["escape"]),
        (b"\r\x7f ", ["enter", "backspace", " "]),
        (b"\x1b[1;5Cq", ["q"]),
        ("中ä".encode(), ["中", "ä"]),
    ],
)
def test_what_a_terminal_sends(data: bytes, meant: list[str]) -> None:
    assert list(keys(data)) == meant


@given(st.binary(max_size=40))
def test_any_bytes_are_keys_and_do_no_harm(data: bytes) -> None:
    page = shown((1, 2), (3, 4))
    for key in keys(data):
        page.press(key)
    assert drawn(page)
