"""A graph of the chains for programs: chains with their rules, ends, and what packets light up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.formats.iptables_save import rule_text
from istio_init.simulate.report_json import purpose_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.draw.graph import Box, Graph, GraphRow
    from istio_init.draw.highlight import Highlight


def as_json(graph: Graph, lit: Sequence[Highlight] = (), captions: Sequence[str] = ()) -> dict[str, Any]:
    """The graph as plain dicts, lists and strings; `lit` and `captions` are those of a packet's connections."""
    return {
        "family": graph.family,
        "chains": [_chain(box) for box in graph.boxes],
        "ends": [
            {"key": end.key, "kind": end.kind, "hook": end.hook, "title": end.title, "text": end.text}
            for end in graph.ends
        ],
        "connections": [
            {"caption": caption, **{field: sorted(getattr(each, field)) for field in each._fields}}
            for caption, each in zip(captions, lit, strict=False)
        ],
        "notes": list(captions[len(lit) :]),
    }


def _chain(box: Box) -> dict[str, Any]:
    return {
        "key": box.key,
        "table": box.table,
        "chain": box.name,
        "hook": box.hook,
        "rows": [_row(row) for row in box.rows],
    }


def _row(row: GraphRow) -> dict[str, Any]:
    return {
        "key": row.key,
        "number": row.number or None,
        "matches": row.condition,
        "target": row.action,
        "to": row.to or None,
        "rule": rule_text(row.rule) if row.rule else None,
        "purpose": purpose_json(row.why) if row.why else None,
    }
