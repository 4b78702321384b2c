"""The diff of a namespace: chains aligned rule by rule, in the syntax of iptables-save or nft list.

It aligns values, not text, with the same algorithm as `check` and a run's errors (model/alignment.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from istio_init.formats.iptables_save import rule_text
from istio_init.formats.nft.layout import layout
from istio_init.formats.nft.listing import blocks
from istio_init.model.alignment import aligned
from istio_init.model.inet import NAMES, InetTable
from istio_init.model.ownership import recognised
from istio_init.model.placement import merged
from istio_init.model.routing import command
from istio_init.model.rules import Ruleset, Table, ordered
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from istio_init.model.alignment import Sign
    from istio_init.model.compare import TableChange
    from istio_init.model.rules import Chain
    from istio_init.planning.changes import Changes

    # An unchanged, added or removed line.
    DiffLine: TypeAlias = tuple[Sign, str]
    # A line's value, used for the comparison, and its text.
    Item: TypeAlias = tuple[Hashable, str]


class Hunk(Record):
    """One chain (or nftables set, or the routing) that changes, with all its lines, including unchanged ones.

    `family` is `inet` for native tables and empty for routing; `table` is the table's name in the kernel.
    """

    family: str
    table: str
    chain: str
    lines: tuple[DiffLine, ...]

    @property
    def place(self) -> str:
        """The family, table and chain."""
        return " ".join(word for word in (self.family, self.table, self.chain) if word)


def hunks(rulesets: Iterable[Ruleset], changes: Changes) -> Iterator[Hunk]:
    """The hunks of iptables tables, legacy or nft, in the order in which a run writes them."""
    existing = {ruleset.family: ruleset for ruleset in rulesets}
    for change in changes.tables:
        table = existing[change.family].table(change.name) or Table(change.name, ordered(change.name, {}))
        recognised_table = recognised(table, change.desired or change.unsigned)
        after = merged(recognised_table, change.desired)
        names = dict.fromkeys(chain.name for table in (after, table) for chain in table.chains)
        for name in names:
            lines = _diff(_items(table.chain(name)), _items(after.chain(name)))
            if lines:
                yield Hunk(change.family, change.name, name, lines)


def _items(chain: Chain | None) -> tuple[Item, ...]:
    """A chain as iptables-save prints it; a built-in one without its policy, which never changes."""
    if chain is None:
        return ()
    head = ((chain.name, f":{chain.name} - [0:0]"),) if chain.policy is None else ()
    return (*head, *((rule, f"-A {chain.name} {rule_text(rule)}".rstrip()) for rule in chain.rules))


def inet_hunks(rulesets: Iterable[Ruleset], inet: tuple[InetTable, ...], changes: Changes) -> Iterator[Hunk]:
    """The hunks of native tables, which a run replaces as a whole; `inet` are the existing ones."""
    after = tuple(_ruleset_after(ruleset, changes.tables) for ruleset in rulesets)
    existing = {table.name: table for table in inet}
    for name in dict.fromkeys(change.name for change in changes.tables):
        before = blocks(existing.get(name, InetTable(name, ())))
        desired = blocks(layout(after, name))
        for block in dict.fromkeys((*desired, *before)):
            lines = _diff(
                *(tuple((value, text) for value, text, _ in side.get(block, ())) for side in (before, desired))
            )
            if lines:
                yield Hunk("inet", NAMES[name], block, lines)


def _ruleset_after(ruleset: Ruleset, changes: Iterable[TableChange]) -> Ruleset:
    """One family's rules after the changes."""
    changed: dict[str, Table | None] = {
        change.name: change.desired for change in changes if change.family == ruleset.family
    }
    unchanged = (table for table in ruleset.tables if table.name not in changed)
    return ruleset.replace(tables=(*unchanged, *(table for table in changed.values() if table is not None)))


def routing_hunk(all_changes: Iterable[Changes]) -> Hunk | None:
    """The routing hunk of all changes, None if they do not change routing."""
    lines: list[DiffLine] = []
    for changes in all_changes:
        lines += [("+", command(entry)) for entry in changes.add]
        lines += [("-", command(entry)) for entry in changes.drop]
    return Hunk("", "routing", "", tuple(lines)) if lines else None


def _diff(before: tuple[Item, ...], after: tuple[Item, ...]) -> tuple[DiffLine, ...]:
    """All lines with their signs; empty if nothing changes."""
    sides = [value for value, _ in before], [value for value, _ in after]
    if sides[0] == sides[1]:
        return ()
    return tuple((sign, (after if sign == "+" else before)[at][1]) for sign, at in aligned(*sides))


def folded(lines: tuple[DiffLine, ...], context: int = 3) -> Iterator[tuple[str, str]]:
    """The lines, with each long run of unchanged ones replaced by a count, except for a few around changes."""
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end][0] == " ":
            end += 1
        head = context if at else 0
        tail = context if end < len(lines) else 0
        hidden = end - at - head - tail
        if hidden > 1:
            yield from lines[at : at + head]
            yield " ", f"... {hidden} unchanged lines"
            yield from lines[end - tail : end]
        else:
            yield from lines[at:end]
        if end < len(lines):
            yield lines[end]
        at = end + 1
