"""The live page of `show --watch`: rules with counters per second, a filter, and what the selected rule is for.

It knows keys and sizes, and nothing of a terminal; watch.py has that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from istio_init.cli.verbs.show_render import STYLES, TROUBLE, conntrack, notes, shown
from istio_init.errors import printable
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from istio_init.inspect.snapshot import Snapshot
    from istio_init.inspect.table_view import RuleRow

# Lines of the explanation, and of a page that is too low for so many.
EXPLANATION, LOW_EXPLANATION = 8, 4
LOW = 20
# Columns from which on there is room for each chain's table, and for further counters.
ROOM_FOR_BYTES, ROOM_FOR_TOTALS = 60, 76
KEYS = {
    "up, down, j, k": "select a rule",
    "page up, page down, home, end": "select further away",
    "/": "filter: rules with all these words in them; enter keeps it, escape clears it",
    "s": "sort: by packets per second, or as the kernel has them",
    "space": "pause, and go on",
    "?": "these keys",
    "q, Ctrl-C": "end",
}
HINT = "↑↓ select  / filter  s sort  space pause  ? keys  q quit"
UNITS = "kMGT"


class Entry(Record):
    """A rule on the page: where it is, its packets and bytes per second (None until two snapshots have it)."""

    where: str
    row: RuleRow
    packets: float | None = None
    bytes: float | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """What a rule is known by in the next snapshot."""
        return self.where, self.row.number, self.row.text

    @property
    def words(self) -> str:
        """What a filter looks in."""
        return " ".join((self.where, self.row.text, self.row.state, *notes(self.row))).lower()


class LivePage:
    """What is shown, what is selected, and how keys change both."""

    def __init__(self) -> None:
        self.filter = ""
        self.paused = False
        self._typing = self._helping = self._sorts = False
        self._snapshot: Snapshot | None = None
        self._entries: tuple[Entry, ...] = ()
        self._selected: tuple[str, int, str] | None = None
        self._time = 0.0
        self._window = 1

    def update(self, snapshot: Snapshot, time: float) -> None:
        """Take the next snapshot, of a time in seconds."""
        before = {entry.key: entry.row for entry in self._entries}
        seconds = time - self._time
        self._entries = tuple(
            _with_rates(entry, before.get(entry.key), seconds) for entry in _entries(snapshot)
        )  # fmt: skip
        self._snapshot, self._time = snapshot, time

    def visible(self) -> list[Entry]:
        """The rules that the filter leaves, in their order."""
        filter_words = self.filter.lower().split()
        entries = [entry for entry in self._entries if all(word in entry.words for word in filter_words)]
        return sorted(entries, key=lambda entry: -(entry.packets or 0)) if self._sorts else entries

    def selected(self) -> Entry | None:
        """The selected rule; the first where none is, or the filter hides it."""
        every = self.visible()
        return every[self._at(every)] if every else None

    def _at(self, every: list[Entry]) -> int:
        return next((at for at, entry in enumerate(every) if entry.key == self._selected), 0)

    def press(self, key: str) -> bool:
        """Do what a key means; False where it ends the page."""
        if self._typing:
            self._type(key)
            return True
        match key:
            case "q":
                return False
            case "/":
                self._typing, self.filter = True, ""
            case "escape":
                self.filter, self._helping = "", False
            case "s":
                self._sorts = not self._sorts
            case " ":
                self.paused = not self.paused
            case "?":
                self._helping = not self._helping
            case _:
                self._move(key)
        return True

    def _type(self, key: str) -> None:
        if key in {"enter", "escape"}:
            self._typing = False
            self.filter = self.filter if key == "enter" else ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key

    def _move(self, key: str) -> None:
        every = self.visible()
        steps = {
            "up": -1, "k": -1, "down": 1, "j": 1, "page up": -self._window, "page down": self._window,
            "home": -len(every), "end": len(every),
        }  # fmt: skip
        if key in steps and every:
            at = min(max(self._at(every) + steps[key], 0), len(every) - 1)
            self._selected = every[at].key

    # Drawing.

    def render(self, width: int, height: int) -> RenderableType:
        """The page for a screen of this size."""
        explanation = list(self._explanation(width))[: EXPLANATION if height >= LOW else LOW_EXPLANATION]
        head = list(self._head())
        self._window = max(height - len(head) - len(explanation) - 3, 1)
        body = self._table(width)
        return Group(*map(_cut, head), body, Text("─" * width, style="dim"), *explanation, _cut(self._foot()))

    def _head(self) -> Iterator[Text]:
        if self._snapshot is None:
            return
        snapshot = self._snapshot
        verdict = Text(printable(f"{snapshot.verdict} ({snapshot.backend}: {snapshot.why})"))
        verdict.stylize(STYLES.get(snapshot.verdict, TROUBLE))
        yield verdict
        problems = (*snapshot.findings, *snapshot.warnings)
        if problems:
            more = f"; and {len(problems) - 1} more" if problems[1:] else ""
            yield Text(printable(problems[0]) + more, style=TROUBLE)
        yield Text(conntrack(snapshot), style="dim")

    def _table(self, width: int) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
        table.add_column("chain", no_wrap=True, overflow="ellipsis", max_width=max(width // 3, 10))
        table.add_column("#", no_wrap=True, justify="right")
        table.add_column("rule", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("pkts/s", no_wrap=True, justify="right", min_width=7)
        counters = [("bytes/s", ROOM_FOR_BYTES), ("packets", ROOM_FOR_TOTALS)]
        for name, least in counters:
            if width >= least:
                table.add_column(name, no_wrap=True, justify="right", min_width=7)
        every = self.visible()
        at = self._at(every)
        first = min(max(at - self._window // 2, 0), max(len(every) - self._window, 0))
        for number, entry in enumerate(every[first : first + self._window], first):
            table.add_row(*self._cells(entry, width), style=self._style(entry, chosen=number == at))
        return table

    def _cells(self, entry: Entry, width: int) -> Iterator[Text]:
        row = entry.row
        yield Text(printable(entry.where if width >= ROOM_FOR_BYTES else entry.where.rpartition(" ")[2]))
        yield Text(str(row.number))
        yield Text(printable(row.text))
        yield Text(amount(entry.packets))
        if width >= ROOM_FOR_BYTES:
            yield Text(amount(entry.bytes))
        if width >= ROOM_FOR_TOTALS:
            yield Text(amount(row.count.packets if row.count else None))

    def _style(self, entry: Entry, *, chosen: bool) -> str:
        style = STYLES.get(entry.row.state, TROUBLE) if entry.row.state != "in place" else ""
        moving = "bold" if entry.packets else ""
        return " ".join(filter(None, ("reverse" if chosen else "", style, moving)))

    def _explanation(self, width: int) -> Iterator[Text]:
        if self._helping:
            yield from (_cut(Text(f"{keys}: {text}")) for keys, text in KEYS.items())
            return
        entry = self.selected()
        if entry is None:
            yield Text("no rule has these words" if self.filter else "no rules", style="dim")
            return
        yield from _folded(f"{entry.where} {entry.row.number}: {entry.row.text}", width, "bold")
        for note in notes(entry.row):
            yield from _folded(note, width, "")

    def _foot(self) -> Text:
        if self._typing:
            return Text(f"/{self.filter}▏ enter keeps the filter, escape clears it")
        parts = [f"filter: {self.filter}"] if self.filter else []
        parts += ["PAUSED"] if self.paused else []
        parts += ["by packets/s"] if self._sorts else []
        return Text("  ".join([*parts, HINT]), style="dim")


def _entries(snapshot: Snapshot) -> Iterator[Entry]:
    several = len({backend for backend, _ in snapshot.tables}) > 1
    for backend, table in snapshot.tables:
        for chain in shown(table):
            where = " ".join((*((backend,) if several else ()), table.family, table.name, chain.name))
            yield from (Entry(where, row) for row in chain.rows)


def _with_rates(entry: Entry, before: RuleRow | None, seconds: float) -> Entry:
    """The entry with its rates; without, where the rule is new, has no counter, or was counted anew."""
    now, then = entry.row.count, before.count if before else None
    if now is None or then is None or seconds <= 0 or now.packets < then.packets:
        return entry
    packets, counted = (now.packets - then.packets) / seconds, (now.bytes - then.bytes) / seconds
    return entry.replace(packets=packets, bytes=counted)


def amount(number: float | None) -> str:
    """A number in a few characters; a dash where there is none."""
    if number is None:
        return "-"
    if number < 10 and number != int(number):
        return f"{number:.1f}"
    unit = ""
    for each in UNITS:
        if number < 10000:
            break
        number, unit = number / 1000, each
    return f"{number:.0f}{unit}"


def _folded(text: str, width: int, style: str) -> Iterator[Text]:
    """A text as lines of this width."""
    line = ""
    for word in printable(text).split(" "):
        while len(word) > width:
            yield from ([Text(line, style=style)] if line else [])
            line, word = word[:width], word[width:]  # noqa: PLW2901 (what is left of it)
        if line and len(line) + 1 + len(word) > width:
            yield Text(line, style=style)
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield Text(line, style=style)


def _cut(line: Text) -> Text:
    """A line that is cut at the screen's edge."""
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
