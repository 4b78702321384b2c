"""Compares desired tables with current ones: which differ, and what is to be changed.

ownership.py says which rules are Istio's.
"""

from __future__ import annotations

from istio_init.model.rules import Ruleset, Table, ordered
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Family, TableName


def drifted_tables(desired: Ruleset, current: Ruleset) -> Iterator[tuple[TableName, bool]]:
    """The tables in which Istio rules are not as wanted, each with whether it has no Istio rules at all.

    Nothing where the plan is in place; other programs' rules do not count. differences.py has the details.
    """
    for desired_table, current_table in pairs(desired, current):
        own = own_table(desired_table, current_table)
        if own is None:
            yield desired_table.name, True
            continue
        from istio_init.model.differences import drifted_chains

        if any(True for _ in drifted_chains(desired_table, own, current_table)):
            yield desired_table.name, False


def pairs(desired: Ruleset, current: Ruleset) -> Iterator[tuple[Table, Table | None]]:
    """Each table that is wanted or found, as it is wanted and as it is found."""
    for table in desired.tables:
        current_table = current.table(table.name)
        # The identical object: its reader compared it while reading (kernel.Firewall.read).
        if current_table is not table:
            yield table, current_table
    for table in current.tables:
        if not desired.table(table.name):
            yield Table(table.name, ordered(table.name, {})), table


def own_table(desired: Table, current: Table | None) -> Table | None:
    """Istio's part of a found table; None where it has none and should have; the wanted one where none is wanted."""
    own = None
    if current:
        from istio_init.model.ownership import own_part

        own = own_part(current, desired)
    if own is None:
        return None if any(chain.parts for chain in desired.chains) else desired
    return own


class TableChange(Record):
    """One table to bring to `desired`, or, if that is None, to remove all of Istio's rules from.

    `unsigned` has further rules that count as Istio's without a signature (own_rules). `like` is an earlier state of
    the table, among whose other rules Istio's go back to their places.
    """

    family: Family
    name: TableName
    desired: Table | None
    unsigned: Table | None = None
    like: Table | None = None
