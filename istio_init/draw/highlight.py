"""The rows and links of a graph that a path passes, for each connection."""

from __future__ import annotations

from istio_init.draw.graph import row_key
from istio_init.record import Record
from istio_init.simulate.trace_steps import ChainEnd, SkippedTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.draw.graph import Graph
    from istio_init.simulate.path import Leg, PacketPath
    from istio_init.simulate.trace_steps import RuleStep

ALONE = "end/alone/"


class Highlight(Record):
    """The parts of a graph that one connection's packet passed, by their keys.

    Rows that did not match, rows that did, rows whose link it took, and the hooks, boxes and ends that it reached.
    """

    tried: frozenset[str]
    hit: frozenset[str]
    links: frozenset[str]
    reached: frozenset[str]


def highlights(path: PacketPath, graph: Graph) -> tuple[Highlight, ...]:
    """The highlight of each leg of the path."""
    return tuple(_highlight(leg, graph) for leg in path.legs)


def _highlight(leg: Leg, graph: Graph) -> Highlight:
    links = graph.links
    tried: set[str] = set()
    hit: set[str] = set()
    links_taken: dict[str, str] = {}
    for hook_trace in leg.traces:
        last = ""  # the row that ended the walk through the hook's tables
        table, is_ended = "", False
        for step in hook_trace.steps:
            if isinstance(step, SkippedTable):
                continue
            if step.table != table:
                table, is_ended = step.table, False
            key, matched = _row(step)
            if not matched:
                tried.add(key)
                continue
            to = links.get(key, "")
            if isinstance(step, ChainEnd) and is_ended:
                continue  # the end of a chain that a RETURN led back to
            hit.add(key)
            if to.startswith("end/"):
                is_ended = True
                last = key if not last or links[last].startswith(ALONE) else last
            elif to:
                links_taken[key] = to
        # A packet that one table does not capture may be captured by another.
        if last and not (links[last].startswith(ALONE) and any(_is_captured(to) for to in links_taken.values())):
            links_taken[last] = links[last]
    hooks = {f"hook/{hook_trace.hook}" for hook_trace in leg.traces}
    reached = {key.rpartition("/")[0] for key in tried | hit} | set(links_taken.values()) | hooks
    drawn = {row.key for box in graph.boxes for row in box.rows}
    return Highlight(frozenset(tried - hit), frozenset(hit & drawn), frozenset(links_taken), frozenset(reached))


def _row(step: RuleStep | ChainEnd) -> tuple[str, bool]:
    if isinstance(step, ChainEnd):
        return row_key(step.table, step.chain, 0), True
    return row_key(step.table, step.chain, step.number), step.matched is not False


def _is_captured(to: str) -> bool:
    return to.startswith("end/") and not to.startswith(ALONE)
