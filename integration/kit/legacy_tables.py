"""Legacy tables with Istio's chains for a namespace, what the kernel's own save prints of them, and tables emptied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from integration.kit.namespace import Namespace
from integration.kit.program import RESTORE, SAVE, with_protocol_names
from istio_init.formats.iptables_save import dump_table
from istio_init.model.extensions import (
    Mark,
)
from istio_init.model.rules import (
    Chain,
    Jump,
    Rule,
    Table,
    Verdict,
    ordered,
)

if TYPE_CHECKING:
    from istio_init.model.rules import Family, TableName

EVERY: tuple[TableName, ...] = ("raw", "mangle", "nat")
RETURN = Verdict("RETURN")


def table_of(name: TableName, *chains: Chain) -> Table:
    return Table(name, ordered(name, {chain.name: chain for chain in chains}))


def nat(*rules: Rule) -> Table:
    """These rules in ISTIO_OUTPUT, behind a jump."""
    jump = Rule((), Jump("ISTIO_OUTPUT"))
    return table_of("nat", Chain("OUTPUT", (jump,), "ACCEPT"), Chain("ISTIO_OUTPUT", rules))


def marked(*marks: int) -> tuple[Rule, ...]:
    return tuple(Rule((Mark(mark),), RETURN) for mark in marks)


def saved(namespace: Namespace, family: Family, name: str) -> str:
    """The table's lines from *NAME to COMMIT, as the kernel's own save prints them."""
    lines = namespace.run(SAVE[family], "-t", name).split("\n")
    return with_protocol_names("\n".join(line for line in lines if not line.startswith("#")))


def reset(namespace: Namespace, family: Family) -> None:
    text = "".join(dump_table(table_of(name)) for name in EVERY)
    namespace.run(RESTORE[family], text=text)
