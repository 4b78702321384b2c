"""The layout of a graph: hooks from left to right, tables from top to bottom, jumps as lines between them. Pure.

Each table is a band across the columns of the hooks; within it a chain is drawn below its callers, one chain per
layer. Lines run in the gutters between columns and in the channels above layers, so that none crosses a box; all lines
to one target share a track. Lengths are in pixels, y grows downwards.
"""

from __future__ import annotations

from itertools import pairwise
from unicodedata import east_asian_width

from istio_init.draw.graph import title_of
from istio_init.draw.picture import Band, Connector, Head, Picture, PlacedBox, PlacedEnd, PlacedRow, Rect, Text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.draw.graph import Box, End, Graph, GraphRow
    from istio_init.model.rules import Hook

ABOUT: dict[Hook, str] = {
    "PREROUTING": "what comes in",
    "INPUT": "to the pod",
    "FORWARD": "through the pod",
    "OUTPUT": "what the pod sends",
    "POSTROUTING": "what leaves",
}
ALWAYS: frozenset[str] = frozenset({"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"})
NOWHERE = "nothing leads here"

CELL = 7.3  # a character of 12 pixels in a monospaced font
ROW = 22.0
TITLE = 26.0
HEAD = 46.0
END = 46.0
PAD = 9.0
NUMBER = 30.0  # the column of the rules' numbers
BARS = 14.0  # before it, marks of the connections that reached the row
NINE = 22.0  # after it, the article's number if it differs
TRACK = 9.0
GUTTER = 11.0
MARGIN = 10.0
BAND_TITLE = 24.0
LAYER = 14.0
LONGEST = 62  # characters of a rule's condition
NARROWEST = {"INPUT": 98.0, "POSTROUTING": 124.0}
NARROW = 132.0  # any other column, PREROUTING in bold letters


def cells(text: str) -> int:
    """The width of a text in characters of a monospaced font, rounded up in doubt."""
    return sum(2 if each not in "→…" and east_asian_width(each) in "WFA" else 1 for each in text)


def cut(text: str, most: int) -> str:
    """The text, cut to at most this many characters of width."""
    if cells(text) <= most:
        return text
    while cells(text) >= most:
        text = text[:-1]
    return f"{text}…"


def draw(graph: Graph) -> Picture:
    """The graph's picture."""
    return _Layout(graph).picture()


class _Layout:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        used = {*(box.hook for box in graph.boxes), *(end.hook for end in graph.ends)}
        hooks: list[Hook | None] = [hook for hook in ABOUT if hook in ALWAYS or hook in used]
        self._columns = hooks + ([None] if None in used else [])
        self._widths = [
            max(
                NARROWEST.get(hook or "", NARROW),
                *(_box_width(box) for box in graph.boxes if box.hook == hook),
                *(_end_width(end) for end in graph.ends if end.hook == hook),
                0.0,
                0.0,
            )
            for hook in self._columns
        ]
        # The levels from top to bottom: the layers of each table, then those of the ends.
        self._levels: dict[str, int] = {}
        self._tables = list(dict.fromkeys(box.table for box in graph.boxes))
        self._starts: list[int] = []
        self._places = {box.key: self._columns.index(box.hook) for box in graph.boxes}
        self._places |= {end.key: self._columns.index(end.hook) for end in graph.ends}
        depth = 0
        for table in self._tables:
            self._starts.append(depth)
            depth = self._layers([box for box in graph.boxes if box.table == table], depth)
        self._starts.append(depth)
        self._rows_of_ends = self._end_rows()
        for at, row in enumerate(self._rows_of_ends):
            self._levels |= {end.key: depth + at for end in row}
        self._depth = depth + len(self._rows_of_ends)
        self._routes()

    def _layers(self, boxes: list[Box], start: int) -> int:
        """Assign each box of a table its level; returns the next free level."""
        occupied: set[tuple[Hook | None, int]] = set()
        lowest = {box.key: start for box in boxes}
        for box in boxes:
            level = lowest[box.key]
            while (box.hook, level) in occupied:
                level += 1
            occupied.add((box.hook, level))
            self._levels[box.key] = level
            for row in box.rows:
                if row.to in lowest:
                    lowest[row.to] = max(lowest[row.to], level + 1)
        return max((level for _, level in occupied), default=start - 1) + 1

    def _end_rows(self) -> list[list[End]]:
        """The ends in rows; in each column as many side by side as fit."""
        rows: list[list[End]] = []
        for at, hook in enumerate(self._columns):
            row, room = 0, self._widths[at]
            for end in self._graph.ends:
                if end.hook != hook:
                    continue
                if _end_width(end) > room:
                    row, room = row + 1, self._widths[at]
                room -= _end_width(end) + LAYER
                while len(rows) <= row:
                    rows.append([])
                rows[row].append(end)
        return rows

    def _routes(self) -> None:
        """Assign the gutter of each link, and the tracks of gutters and channels."""
        self._gutters: list[list[str]] = [[] for _ in range(len(self._columns) + 1)]
        self._channels: list[list[str]] = [[] for _ in range(self._depth)]
        self._links: list[tuple[str, str, int]] = []
        for box in self._graph.boxes:
            column = self._columns.index(box.hook)
            for row in box.rows:
                if row.to not in self._places:
                    continue
                gutter = column if self._places[row.to] < column else column + 1
                self._links.append((row.key, row.to, gutter))
                _once(self._gutters[gutter], row.to)
                _once(self._channels[self._levels[row.to]], row.to)

    def picture(self) -> Picture:
        """The picture with everything in place."""
        xs, x = [], MARGIN
        for at, width in enumerate(self._widths):
            x += self._gutter(at)
            xs.append(x)
            x += width
        width = x + self._gutter(len(self._widths)) + MARGIN
        self._xs = xs
        heads = tuple(
            Head(hook, Rect(xs[at], MARGIN, self._widths[at], HEAD), hook or "UNUSED", ABOUT[hook] if hook else NOWHERE)
            for at, hook in enumerate(self._columns)
        )
        boxes: list[PlacedBox] = []
        bands: list[Band] = []
        self._tops: list[float] = []
        y = MARGIN + HEAD + LAYER
        for at, (begin, end) in enumerate(pairwise(self._starts)):
            top = y
            y += BAND_TITLE
            for level in range(begin, end):
                y += self._channel(level)
                self._tops.append(y)
                here = [box for box in self._graph.boxes if self._levels[box.key] == level]
                boxes += [self._box(box, y) for box in here]
                y = max(placed.rect.bottom for placed in boxes if self._levels[placed.box.key] == level)
            y += PAD
            bands.append(Band(self._tables[at], Rect(MARGIN, top, width - 2 * MARGIN, y - top)))
            y += LAYER
        ends: list[PlacedEnd] = []
        for at, row in enumerate(self._rows_of_ends):
            y += self._channel(self._starts[-1] + at)
            self._tops.append(y)
            ends += self._ends(row, y)
            y += END
        lines = tuple(self._lines(boxes, ends))
        return Picture(self._graph, width, y + MARGIN, heads, tuple(bands), tuple(boxes), tuple(ends), lines)

    def _gutter(self, at: int) -> float:
        return GUTTER + TRACK * len(self._gutters[at]) + (GUTTER if self._gutters[at] else 0)

    def _channel(self, level: int) -> float:
        return LAYER + TRACK * len(self._channels[level])

    def _box(self, box: Box, y: float) -> PlacedBox:
        column = self._columns.index(box.hook)
        x, width = self._xs[column], self._widths[column]
        rect = Rect(x, y, width, TITLE + ROW * len(box.rows) + 4)
        name = cut(title_of(box), int((width - 2 * PAD) / CELL))
        title = Text(x + PAD, y + 18, width - 2 * PAD, name)
        rows = tuple(_row(box, row, Rect(x, y + TITLE + at * ROW, width, ROW)) for at, row in enumerate(box.rows))
        return PlacedBox(box, rect, title, rows)

    def _ends(self, row: list[End], y: float) -> Iterator[PlacedEnd]:
        for at, hook in enumerate(self._columns):
            here = [end for end in row if end.hook == hook]
            x = self._xs[at]
            for end in here:
                yield PlacedEnd(end, Rect(x, y, _end_width(end), END))
                x += _end_width(end) + LAYER

    def _lines(self, boxes: list[PlacedBox], ends: list[PlacedEnd]) -> Iterator[Connector]:
        rows = {placed.row.key: placed.rect for each in boxes for placed in each.rows}
        tops = {each.box.key: each.rect for each in boxes} | {each.end.key: each.rect for each in ends}
        for source, target, gutter in self._links:
            start, end = rows[source], tops[target]
            column = self._places[source.rpartition("/")[0]]
            left = gutter == column
            edge = self._xs[gutter] - self._gutter(gutter) if gutter < len(self._xs) else self._right()
            tracks = self._gutters[gutter]
            lane = edge + GUTTER + TRACK * (tracks.index(target) + 0.5)
            channel = self._channels[self._levels[target]]
            across = self._tops[self._levels[target]] - LAYER + 2 - TRACK * (len(channel) - channel.index(target) - 0.5)
            into = end.x + (end.width / 2 if target.startswith("end/") else min(end.width / 2, 150))
            middle = start.y + ROW / 2
            begin = start.x if left else start.right
            points = ((begin, middle), (lane, middle), (lane, across), (into, across), (into, end.y))
            yield Connector(source, target, points)

    def _right(self) -> float:
        return self._xs[-1] + self._widths[-1]


def _once(tracks: list[str], target: str) -> None:
    if target not in tracks:
        tracks.append(target)


def _has_nine(box: Box) -> bool:
    """Whether the article's numbers need a separate column because they differ from the rules' numbers."""
    return any(row.nine and row.nine != str(row.number) for row in box.rows)


def _lead(box: Box) -> float:
    return BARS + NUMBER + (NINE if _has_nine(box) else 0)


def _box_width(box: Box) -> float:
    condition = max((min(cells(row.condition), LONGEST) for row in box.rows), default=0)
    action = max((min(cells(row.action), LONGEST) for row in box.rows), default=0)
    title = min(cells(title_of(box)), LONGEST)
    return float(max(_lead(box) + CELL * (condition + 2 + action) + PAD, title * CELL * 1.1 + 2 * PAD))


def _end_width(end: End) -> float:
    """The width for its title in bold 13-pixel letters, and its text in 12-pixel letters."""
    return max(8.2 * len(end.title), 7.1 * len(end.text)) + 28


def _row(box: Box, row: GraphRow, rect: Rect) -> PlacedRow:
    base = rect.y + 15
    condition, action = cut(row.condition, LONGEST), cut(row.action, LONGEST)
    number = Text(rect.x + BARS + NUMBER - 10, base, NUMBER - 8, str(row.number or ""), at_end=True)
    nine = None
    if row.nine:
        at = BARS + NUMBER - 4 if _has_nine(box) else BARS + 3
        nine = Text(rect.x + at, base, 16, row.nine)
    return PlacedRow(
        row, rect, number,
        Text(rect.x + _lead(box), base, cells(condition) * CELL, condition),
        Text(rect.right - PAD, base, cells(action) * CELL, action, at_end=True), nine,
    )  # fmt: skip
