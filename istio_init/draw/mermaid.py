"""A graph as a Mermaid flowchart: a node for a chain with its rules as lines, links with the rules' numbers."""

from __future__ import annotations

from istio_init.draw.graph import title_of
from istio_init.draw.layout import LONGEST, cut
from istio_init.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from istio_init.draw.graph import Box, Graph, GraphRow
    from istio_init.draw.highlight import Highlight

CLASSES = {
    "envoy": "stroke:#5b3fc4,stroke-width:2px",
    "alone": "stroke:#23804a,stroke-width:2px",
    "dropped": "stroke:#c02b3a,stroke-width:2px",
    "met": "stroke:#1769d2,stroke-width:3px",
}
KINDS = {"alone": "alone", "dropped": "dropped", "queued": "dropped"}
# Wide enough to keep a rule on one line.
WIDE = "%%{init: {'flowchart': {'wrappingWidth': 700}}}%%"
HIGHLIGHTED = "stroke:#1769d2,stroke-width:3px"


def mermaid(graph: Graph, highlighted: Sequence[Highlight] = ()) -> str:
    """The text of a .mmd file."""
    return "\n".join(_lines(graph, highlighted)) + "\n"


def _lines(graph: Graph, highlighted: Sequence[Highlight]) -> Iterator[str]:
    keys = [*(box.key for box in graph.boxes), *(end.key for end in graph.ends)]
    names = {key: f"n{at}" for at, key in enumerate(keys)}
    reached = frozenset[str]().union(*(highlight.reached for highlight in highlighted))
    yield WIDE
    yield "flowchart LR"
    hooks = list(dict.fromkeys(box.hook for box in graph.boxes))
    for at, hook in enumerate(hooks):
        yield f'  subgraph h{at}["{hook or "nothing leads here"}"]'
        for box in graph.boxes:
            if box.hook == hook:
                yield f'    {names[box.key]}["{_label(box, highlighted)}"]'
        yield "  end"
    for end in graph.ends:
        yield f'  {names[end.key]}(["{_text(end.title)}<br/>{_text(end.text)}"])'
    links = frozenset[str]().union(*(highlight.links for highlight in highlighted))
    highlighted_links = []
    for at, (box, to, rows) in enumerate(_links(graph)):
        numbers = ", ".join(str(row.number or "otherwise") for row in rows)
        yield f'  {names[box.key]} -- "{numbers}" --> {names[to]}'
        if any(row.key in links for row in rows):
            highlighted_links.append(str(at))
    for name, look in CLASSES.items():
        yield f"  classDef {name} {look}"
    for end in graph.ends:
        yield f"  class {names[end.key]} {KINDS.get(end.kind, 'envoy')}"
    for key, name in names.items():
        if key in reached:
            yield f"  class {name} met"
    if highlighted_links:
        yield f"  linkStyle {','.join(highlighted_links)} {HIGHLIGHTED}"


def _links(graph: Graph) -> Iterator[tuple[Box, str, list[GraphRow]]]:
    """The rows of each box, grouped by the target that they lead to."""
    for box in graph.boxes:
        for to in dict.fromkeys(row.to for row in box.rows if row.to):
            yield box, to, [row for row in box.rows if row.to == to]


def _label(box: Box, highlighted: Sequence[Highlight]) -> str:
    lines = [f"<b>{_text(title_of(box))}</b> ({box.table})"]
    for row in box.rows:
        hit = [str(number) for number, highlight in enumerate(highlighted, 1) if row.key in highlight.hit]
        mark = f"▶{','.join(hit)} " if hit else ""
        number = f"{row.number} " if row.number else ""
        text = f"{mark}{number}{cut(row.condition, LONGEST)}: {cut(row.action, LONGEST)}"
        lines.append(f"<b>{_text(text)}</b>" if hit else _text(text))
    return "<br/>".join(lines)


def _text(text: str) -> str:
    """Text with everything that is not a letter, a digit or plain punctuation as Mermaid's entities."""
    return "".join(each if each.isalnum() or each in " .,:_-/→…▶()" else f"#{ord(each)};" for each in printable(text))
