"""A snapshot of a namespace as plain lines, as rich tables, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors import printable
from istio_init.simulate.report import purpose_text
from istio_init.simulate.report_json import purpose_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from istio_init.inspect.snapshot import Snapshot
    from istio_init.inspect.table_view import ChainRows, RuleRow, TableRows

HEADINGS = ("num", "pkts", "bytes", "target", "prot", "in", "out", "source", "destination", "extra")
RIGHT = {"num", "pkts", "bytes"}
# The width of a table's borders and padding, and the least readable width of its last column, the only one that folds.
FRAME = 3 * len(HEADINGS) + 1
NARROWEST_EXTRA = 30
STYLES = {"in place": "green", "other family": "yellow", "foreign": "yellow", "absent": "bold red"}
TROUBLE = "bold red"
# The row of a rule that is missing; its text is the last cell.
MISSING = ("-", "", "", "missing", "", "", "", "", "", "")
NOT_IN_PLACE = {
    "foreign": "foreign: not an Istio rule, left alone",
    "other family": "other family: an Istio rule of a family that these options do not manage",
    "unexpected": "UNEXPECTED: an Istio rule that is not in the plan",
    "misplaced": "MISPLACED: in the plan, but at another position",
}


def cells(row: RuleRow) -> tuple[str, ...]:
    """The cells of a rule's row, in the order of HEADINGS; a rule without a counter has dashes for its counts."""
    columns = row.columns
    counters = (str(row.count.packets), str(row.count.bytes)) if row.count else ("-", "-")
    networks = (columns.source, columns.destination)
    texts = (columns.target, columns.protocol, columns.in_interface, columns.out_interface, *networks, columns.extra)
    return (str(row.number), *counters, *map(printable, texts))


def notes(row: RuleRow) -> list[str]:
    """A rule's purposes, and its state unless it is in place."""
    texts = [NOT_IN_PLACE[row.state]] if row.state in NOT_IN_PLACE else []
    return [*texts, *(printable(purpose_text(each) if each.concern else each.text) for each in row.purposes)]


def head(chain: ChainRows) -> str:
    """A chain's heading, as iptables -L prints it."""
    if chain.policy is None:
        return f"Chain {printable(chain.name)}"
    counters = f" {chain.count.packets} packets, {chain.count.bytes} bytes" if chain.count else ""
    return f"Chain {printable(chain.name)} (policy {chain.policy}{counters})"


def shown(table: TableRows) -> Iterator[ChainRows]:
    """The chains to show: all but built-in ones without rules."""
    return (chain for chain in table.chains if chain.rows or chain.missing or chain.policy is None)


def summary(snapshot: Snapshot) -> Iterator[str]:
    """Whether the plan is in place, and the differences."""
    yield printable(f"{snapshot.verdict} ({snapshot.backend}: {snapshot.why})")
    if snapshot.verdict != "absent":
        yield from (f"  {printable(finding)}" for finding in snapshot.findings)
    yield from (f"  warning: {printable(warning)}" for warning in snapshot.warnings)


def beside(snapshot: Snapshot) -> Iterator[str]:
    """Routing and tracked connections."""
    if snapshot.routing:
        yield "routing"
        yield from (f"  {state:<12}  {printable(text)}" for state, text in snapshot.routing)
    yield conntrack(snapshot)


def conntrack(snapshot: Snapshot) -> str:
    """Connection tracking in one line."""
    if snapshot.backend == "dump":
        return "conntrack: not part of a dump"
    if snapshot.usage is None:
        return "conntrack: no tracked connections"
    entries, limit = snapshot.usage.entries, snapshot.usage.limit
    share = f" ({entries / limit:.1%})" if limit else ""
    text = f"conntrack: {entries} of {limit} entries{share}"
    if snapshot.connections is None:
        return text
    return f"{text}; captured: {', '.join(f'{kind} {count}' for kind, count in snapshot.connections.items())}"


def plain(snapshot: Snapshot, *, brief: bool = False) -> Iterator[str]:
    """The whole snapshot as lines; `brief` leaves out the rules' purposes."""
    yield from summary(snapshot)
    for backend, table in snapshot.tables:
        yield ""
        yield f"{table.family} {table.name} ({backend})"
        for chain in shown(table):
            yield f"  {head(chain)}"
            yield from (f"    {line}" for line in _plain_rows(chain, brief=brief))
            yield from (f"    missing: {printable(text)}" for text in chain.missing)
    yield ""
    yield from beside(snapshot)


def _widths(lines: list[tuple[str, ...]]) -> list[int]:
    """The width of each column."""
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _plain_rows(chain: ChainRows, *, brief: bool) -> Iterator[str]:
    if not chain.rows:
        return
    lines = [HEADINGS, *map(cells, chain.rows)]
    widths = _widths(lines)
    for at, line in enumerate(lines):
        padded = (
            cell.rjust(width) if heading in RIGHT else cell.ljust(width)
            for cell, width, heading in zip(line, widths, HEADINGS, strict=True)
        )
        yield "  ".join(padded).rstrip()
        if at and not brief:
            yield from (f"{' ' * widths[0]}  {note}" for note in notes(chain.rows[at - 1]))


def least_width(snapshot: Snapshot) -> int:
    """The terminal width that `tables` needs; in a narrower one, rich cuts cells and drops columns."""
    chains = (chain for _, table in snapshot.tables for chain in shown(table))
    wide = (sum(_widths([HEADINGS, MISSING, *map(cells, chain.rows)])[:-1]) for chain in chains)
    return max(wide, default=0) + NARROWEST_EXTRA + FRAME


def lines(snapshot: Snapshot, *, brief: bool = False) -> RenderableType:
    """The lines of `plain` for a terminal, folded at its width."""
    from rich.text import Text

    return Text("\n".join(plain(snapshot, brief=brief)))


def tables(snapshot: Snapshot, *, brief: bool = False) -> RenderableType:
    """The whole snapshot for a terminal; `brief` leaves out the rules' purposes."""
    from rich.console import Group
    from rich.text import Text

    first, *rest = summary(snapshot)
    parts: list[RenderableType] = [Text(first, style=STYLES.get(snapshot.verdict, TROUBLE))]
    parts += [Text(line, style=TROUBLE) for line in rest]
    for backend, table in snapshot.tables:
        parts.append(Text(f"\n{table.family} {table.name} ({backend})", style="bold"))
        parts += [_table(chain, brief=brief) for chain in shown(table)]
    parts.append(Text(""))
    return Group(*parts, *(Text(line, style=TROUBLE if " missing " in line else "") for line in beside(snapshot)))


def _table(chain: ChainRows, *, brief: bool) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    # No str, in which rich would look for markup.
    title = Text(head(chain), style="cyan")
    table = Table(title=title, title_justify="left", expand=False, show_lines=not brief)
    for heading in HEADINGS:
        last = heading == HEADINGS[-1]
        what = "extra, and purpose" if last and not brief else heading
        table.add_column(what, justify="right" if heading in RIGHT else "left", overflow="fold", no_wrap=not last)
    for row in chain.rows:
        *front, extra = cells(row)
        extra_text = Text(extra)
        for note in [] if brief else notes(row):
            extra_text.append("\n" * bool(extra_text.plain) + note, style="italic dim")
        style = "" if row.state == "in place" else STYLES.get(row.state, TROUBLE)
        table.add_row(*map(Text, front), extra_text, style=style)
    for text in chain.missing:
        table.add_row(*MISSING[:-1], Text(printable(text)), style=TROUBLE)
    return table


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The JSON document."""
    return {
        "state": snapshot.verdict,
        "backend": snapshot.backend,
        "why": snapshot.why,
        "findings": list(snapshot.findings),
        "warnings": list(snapshot.warnings),
        "tables": [
            {
                "backend": backend,
                "family": table.family,
                "table": table.name,
                "chains": [_chain_json(chain) for chain in table.chains],
            }
            for backend, table in snapshot.tables
        ],
        "routing": [{"state": state, "entry": text} for state, text in snapshot.routing],
        "conntrack": {
            "entries": snapshot.usage.entries,
            "limit": snapshot.usage.limit,
            "captured": snapshot.connections,
        }
        if snapshot.usage
        else None,
    }


def _chain_json(chain: ChainRows) -> dict[str, Any]:
    return {
        "chain": chain.name,
        "policy": chain.policy,
        "packets": chain.count.packets if chain.count else None,
        "bytes": chain.count.bytes if chain.count else None,
        "rules": [_row_json(row) for row in chain.rows],
        "missing": list(chain.missing),
    }


def _row_json(row: RuleRow) -> dict[str, Any]:
    columns = row.columns
    return {
        "number": row.number,
        "packets": row.count.packets if row.count else None,
        "bytes": row.count.bytes if row.count else None,
        **{field: getattr(columns, field) for field in columns._fields},
        "rule": row.text,
        "state": row.state,
        "purposes": [purpose_json(each) for each in row.purposes],
    }
