"""A graph in Graphviz's language: a table for a chain with a row for a rule, edges from the rows."""

from __future__ import annotations

from html import escape

from istio_init.draw.graph import title_of
from istio_init.draw.layout import LONGEST, cut
from istio_init.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from istio_init.draw.graph import Box, Graph
    from istio_init.draw.highlight import Highlight

COLOURS = ("#1769d2", "#c2570c", "#0b7d6e", "#a8309b")
TINTS = ("#dce9fa", "#f9e5d8", "#d8efec", "#f4def1")
ENDS = {"alone": "#23804a", "dropped": "#c02b3a", "queued": "#c02b3a"}
ENVOY = "#5b3fc4"


def dot(graph: Graph, highlighted: Sequence[Highlight] = ()) -> str:
    """The text of a .dot file."""
    return "\n".join(_lines(graph, highlighted)) + "\n"


def _lines(graph: Graph, highlighted: Sequence[Highlight]) -> Iterator[str]:
    keys = [*(box.key for box in graph.boxes), *(end.key for end in graph.ends)]
    names = {key: f"n{at}" for at, key in enumerate(keys)}
    yield f"digraph {graph.family} {{"
    yield '  rankdir=LR; fontname="Helvetica"; bgcolor="white"'
    yield '  node [shape=plain fontname="Helvetica" fontsize=11]'
    yield '  edge [color="#8a97a8" arrowsize=0.7]'
    for at, hook in enumerate(dict.fromkeys(box.hook for box in graph.boxes)):
        yield f'  subgraph cluster_{at} {{ label="{hook or "nothing leads here"}" color="#c9d1db" style=rounded'
        for box in graph.boxes:
            if box.hook == hook:
                yield f"    {names[box.key]} [label=<{_table(box, highlighted)}>]"
        yield "  }"
    for end in graph.ends:
        reached = [
            COLOURS[at % len(COLOURS)] for at, highlight in enumerate(highlighted) if end.key in highlight.reached
        ]
        colour = reached[0] if reached else ENDS.get(end.kind, ENVOY)
        label = f"<B>{_text(end.title)}</B><BR/>{_text(end.text)}"
        look = f'shape=box style=rounded color="{colour}" penwidth={3 if reached else 1}'
        yield f"  {names[end.key]} [{look} label=<{label}>]"
    for box in graph.boxes:
        for row in box.rows:
            if row.to:
                legs = [
                    COLOURS[at % len(COLOURS)] for at, highlight in enumerate(highlighted) if row.key in highlight.links
                ]
                look = f' [color="{":".join(legs)}" penwidth=2]' if legs else ""
                yield f"  {names[box.key]}:r{row.number}:e -> {names[row.to]}{look}"
    yield "}"


def _table(box: Box, highlighted: Sequence[Highlight]) -> str:
    name = f'<TR><TD COLSPAN="3" ALIGN="LEFT"><B>{_text(title_of(box))}</B> ({box.table})</TD></TR>'
    rows = ""
    for row in box.rows:
        hit = [at for at, highlight in enumerate(highlighted) if row.key in highlight.hit]
        tint = f' BGCOLOR="{TINTS[hit[0] % len(TINTS)]}"' if hit else ""
        number = str(row.number or "")
        rows += (
            f"<TR><TD{tint}>{number}</TD>"
            f'<TD ALIGN="LEFT"{tint}>{_text(cut(row.condition, LONGEST))}</TD>'
            f'<TD ALIGN="LEFT" PORT="r{row.number}"{tint}>{_text(cut(row.action, LONGEST))}</TD></TR>'
        )
    return f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="3" BGCOLOR="white">{name}{rows}</TABLE>'


def _text(text: str) -> str:
    return escape(printable(text))
