"""A picture of chains: every box, row, line and band with its place."""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.draw.graph import Box, End, Graph, GraphRow
    from istio_init.model.rules import Hook


class Rect(Record):
    """A rectangle by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.height


class Text(Record):
    """A line of text: the start (or, `at_end`, the end) of its base line, and its greatest width."""

    x: float
    y: float
    width: float
    text: str
    at_end: bool = False


class PlacedRow(Record):
    """A row and its position; `nine` is the position of the article's number, if it has one."""

    row: GraphRow
    rect: Rect
    number: Text
    condition: Text
    action: Text
    nine: Text | None


class PlacedBox(Record):
    """A chain's box, its title and rows."""

    box: Box
    rect: Rect
    title: Text
    rows: tuple[PlacedRow, ...]


class PlacedEnd(Record):
    """An end and its place."""

    end: End
    rect: Rect


class Connector(Record):
    """The line of a link from a row to its target, as its corners."""

    source: str
    target: str
    points: tuple[tuple[float, float], ...]


class Head(Record):
    """A column's head; a hook of None is for the chains that nothing leads to."""

    hook: Hook | None
    rect: Rect
    title: str
    text: str


class Band(Record):
    """A table's band."""

    name: str
    rect: Rect


class Picture(Record):
    """The whole picture with its size."""

    graph: Graph
    width: float
    height: float
    heads: tuple[Head, ...]
    bands: tuple[Band, ...]
    boxes: tuple[PlacedBox, ...]
    ends: tuple[PlacedEnd, ...]
    lines: tuple[Connector, ...]
