"""What is seen of a namespace, as plain lines, as rich tables, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors import printable
from istio_init.simulate.report import purpose_json, purpose_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from istio_init.inspect.snapshot import Snapshot
    from istio_init.inspect.table_view import ChainRows, RuleRow, TableRows

HEADINGS = ("num", "pkts", "bytes", "target", "prot", "in", "out", "source", "destination", "extra")
RIGHT = {"num", "pkts", "bytes"}
# What a table on a terminal has beside its cells' text: blanks around each, and lines between them; and how much room
# its last column, which alone is folded, needs to be read.
FRAME = 3 * len(HEADINGS) + 1
NARROWEST_EXTRA = 30
STYLES = {"in place": "green", "other family": "yellow", "foreign": "yellow", "absent": "bold red"}
TROUBLE = "bold red"
# The row of a rule that is missing; its text is the last cell.
MISSING = ("-", "", "", "missing", "", "", "", "", "", "")
NOT_IN_PLACE = {
    "foreign": "foreign: not ours, left alone",
    "other family": "other family: ours, but these options leave it alone",
    "unexpected": "UNEXPECTED: ours, but not of this plan",
    "misplaced": "MISPLACED: of this plan, but at another place",
}


def cells(row: RuleRow) -> tuple[str, ...]:
    """A row of the article's table; a rule without a counter has no numbers."""
    told = row.columns
    met = (str(row.count.packets), str(row.count.bytes)) if row.count else ("-", "-")
    networks = (told.source, told.destination)
    texts = (told.target, told.protocol, told.in_interface, told.out_interface, *networks, told.extra)
    return (str(row.number), *met, *map(printable, texts))


def notes(row: RuleRow) -> list[str]:
    """What a rule is for, or whose it is."""
    told = [NOT_IN_PLACE[row.state]] if row.state in NOT_IN_PLACE else []
    return told + [purpose_text(each) if each.concern else each.text for each in row.purposes]


def head(chain: ChainRows) -> str:
    """A chain's first line, as iptables -L has it."""
    if chain.policy is None:
        return f"Chain {printable(chain.name)}"
    met = f" {chain.count.packets} packets, {chain.count.bytes} bytes" if chain.count else ""
    return f"Chain {printable(chain.name)} (policy {chain.policy}{met})"


def shown(table: TableRows) -> Iterator[ChainRows]:
    """The chains that there is something to see of: built-in ones without rules are left out."""
    return (chain for chain in table.chains if chain.rows or chain.missing or chain.policy is None)


def summary(sight: Snapshot) -> Iterator[str]:
    """Whether it is in place, and what is not as it should be."""
    yield f"{sight.verdict} ({sight.backend}: {sight.why})"
    if sight.verdict != "absent":
        yield from (f"  {printable(finding)}" for finding in sight.findings)
    yield from (f"  warning: {printable(warning)}" for warning in sight.warnings)


def beside(sight: Snapshot) -> Iterator[str]:
    """Routing and tracked connections."""
    if sight.routing:
        yield "routing"
        yield from (f"  {state:<12}  {printable(text)}" for state, text in sight.routing)
    yield conntrack(sight)


def conntrack(sight: Snapshot) -> str:
    """Connection tracking in one line."""
    if sight.usage is None:
        return "conntrack: no connection is tracked here"
    entries, limit = sight.usage.entries, sight.usage.limit
    share = f" ({entries / limit:.1%})" if limit else ""
    told = f"conntrack: {entries} of {limit} entries{share}"
    if sight.connections is None:
        return told
    return f"{told}; captured: {', '.join(f'{kind} {count}' for kind, count in sight.connections.items())}"


def plain(sight: Snapshot, *, brief: bool = False) -> Iterator[str]:
    """All of it as lines; `brief` leaves out what the rules are for."""
    yield from summary(sight)
    for backend, table in sight.tables:
        yield ""
        yield f"{table.family} {table.name} ({backend})"
        for chain in shown(table):
            yield f"  {head(chain)}"
            yield from (f"    {line}" for line in _plain_rows(chain, brief=brief))
            yield from (f"    missing: {printable(text)}" for text in chain.missing)
    yield ""
    yield from beside(sight)


def _widths(lines: list[tuple[str, ...]]) -> list[int]:
    """How wide each column of the article's table is."""
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


def least_width(sight: Snapshot) -> int:
    """The columns that a terminal needs for `tables`: in fewer, cells would be cut and columns left out."""
    chains = (chain for _, table in sight.tables for chain in shown(table))
    wide = (sum(_widths([HEADINGS, MISSING, *map(cells, chain.rows)])[:-1]) for chain in chains)
    return max(wide, default=0) + NARROWEST_EXTRA + FRAME


def lines(sight: Snapshot, *, brief: bool = False) -> RenderableType:
    """What `plain` says, for a terminal: folded at its width."""
    from rich.text import Text

    return Text("\n".join(plain(sight, brief=brief)))


def tables(sight: Snapshot, *, brief: bool = False) -> RenderableType:
    """All of it for a terminal; `brief` leaves out what the rules are for."""
    from rich.console import Group
    from rich.text import Text

    first, *rest = summary(sight)
    parts: list[RenderableType] = [Text(first, style=STYLES.get(sight.verdict, TROUBLE))]
    parts += [Text(line, style=TROUBLE) for line in rest]
    for backend, table in sight.tables:
        parts.append(Text(f"\n{table.family} {table.name} ({backend})", style="bold"))
        parts += [_table(chain, brief=brief) for chain in shown(table)]
    parts.append(Text(""))
    return Group(*parts, *(Text(line, style=TROUBLE if " missing " in line else "") for line in beside(sight)))


def _table(chain: ChainRows, *, brief: bool) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=head(chain), title_justify="left", title_style="cyan", expand=False, show_lines=not brief)
    for heading in HEADINGS:
        last = heading == HEADINGS[-1]
        what = "extra, and what it is for" if last and not brief else heading
        table.add_column(what, justify="right" if heading in RIGHT else "left", overflow="fold", no_wrap=not last)
    for row in chain.rows:
        *front, extra = cells(row)
        told = Text(extra)
        for note in [] if brief else notes(row):
            told.append("\n" * bool(told.plain) + note, style="italic dim")
        style = "" if row.state == "in place" else STYLES.get(row.state, TROUBLE)
        table.add_row(*map(Text, front), told, style=style)
    for text in chain.missing:
        table.add_row(*MISSING[:-1], Text(printable(text)), style=TROUBLE)
    return table


def as_json(sight: Snapshot) -> dict[str, Any]:
    """All of it for programs."""
    return {
        "state": sight.verdict,
        "backend": sight.backend,
        "why": sight.why,
        "findings": list(sight.findings),
        "warnings": list(sight.warnings),
        "tables": [
            {
                "backend": backend,
                "family": table.family,
                "table": table.name,
                "chains": [_chain_json(chain) for chain in table.chains],
            }
            for backend, table in sight.tables
        ],
        "routing": [{"state": state, "entry": text} for state, text in sight.routing],
        "conntrack": {"entries": sight.usage.entries, "limit": sight.usage.limit, "captured": sight.connections}
        if sight.usage
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
    told = row.columns
    return {
        "number": row.number,
        "packets": row.count.packets if row.count else None,
        "bytes": row.count.bytes if row.count else None,
        **{field: getattr(told, field) for field in told._fields},
        "rule": row.text,
        "state": row.state,
        "purposes": [purpose_json(each) for each in row.purposes],
    }
