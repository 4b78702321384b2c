"""The Firewall on native nftables, through netlink: all tables and both families in one batch.

The tables istio-proxy-raw, -mangle and -nat of the family inet belong to this program alone: writing one replaces
everything in it. The kernel accepts a batch only if no other program has written since the tables were read; otherwise
they are read again. No library and no program is needed.
"""

from __future__ import annotations

from istio_init.formats.nft import merge
from istio_init.formats.nft.layout import layout
from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
from istio_init.kernel.nft.native_dump import dump_tables, holds
from istio_init.kernel.nft.native_encode import TableEncoder
from istio_init.model.inet import NAMES
from istio_init.model.rules import Ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from istio_init.kernel.nft.native_decode import StoredTable
    from istio_init.kernel.nft.native_dump import TableDump
    from istio_init.kernel.nft.native_encode import EncodedTable
    from istio_init.model.compare import TableChange
    from istio_init.model.inet import InetTable
    from istio_init.model.rules import Family, Rule, Run, Table, TableName

    # A table of one family and what to make of it; None removes it.
    Desired: TypeAlias = tuple[Family, TableName, Table | None]


class Nftables:
    """The tables istio-proxy-* of the calling thread's network namespace; see kernel.Firewall."""

    def __init__(self) -> None:
        # What is planned for both families, if the caller says so before it reads.
        self._planned: tuple[Ruleset, ...] = ()
        self._encoder = TableEncoder()
        # Tables laid out, by what they were made from, and encoded: a plan is compared, written and compared again.
        self._laid_out: dict[tuple[object, ...], tuple[Sequence[Ruleset], InetTable]] = {}
        self._encoded: dict[tuple[int, bool], tuple[InetTable, EncodedTable]] = {}
        # The tables at a generation of the rules, which changes whenever anyone writes; None if they are the plan's.
        self._cached: tuple[int, tuple[InetTable, ...] | None] | None = None
        # The kernel's messages about them; None since this object has written.
        self.dumps: dict[TableName, TableDump] | None = None
        # Chains' rules as nftables has them, with the rules that they were made from.
        self._folded: dict[tuple[int, Family], tuple[Sequence[Rule | Run], merge.Folded]] = {}

    def expect(self, planned: tuple[Ruleset, ...]) -> None:
        """Say what the kernel is hoped to hold of both families: a table holds both, and is compared as a whole."""
        self._planned = planned
        self._cached = None

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """See kernel.Firewall. A set that is what rules of `expecting` become reads as those rules."""
        with NfnetlinkChannel() as channel:
            _, tables = self.tables(channel)
        if tables is not None:
            return self.ruleset(tables, family, expecting)
        if any(expecting is each for each in self._planned):
            return expecting  # type: ignore[return-value]  # it is not None
        return self.ruleset(self.planned_tables(), family, expecting)

    def ruleset(self, tables: tuple[InetTable, ...], family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """What tables hold for one family, as formats.nft.as_rulesets has it."""
        if not tables:
            return Ruleset(family, ())
        from istio_init.formats.nft.as_rulesets import ruleset

        return ruleset(tables, family, expecting, self._fold)

    def inet_tables(self) -> tuple[InetTable, ...]:
        """Istio's tables in the plan's terms, as `plan` compares them."""
        with NfnetlinkChannel() as channel:
            _, tables = self.tables(channel)
        return self.planned_tables() if tables is None else tables

    def replace(self, family: Family, desired: Table) -> None:
        """See kernel.Firewall."""
        self._write(((family, desired.name, desired),))

    def remove(self, family: Family, name: TableName, unsigned: Table | None = None) -> None:  # noqa: ARG002 (as it says)
        """See kernel.Firewall. Everything in these tables is Istio's, whatever `unsigned` is."""
        self._write(((family, name, None),))

    def write(self, changes: tuple[TableChange, ...]) -> None:
        """See kernel.Transactional."""
        self._write([(change.family, change.name, change.desired) for change in changes])

    def _write(self, desired: Sequence[Desired]) -> None:
        from istio_init.kernel.nft.native_write import write

        write(self, desired)

    def wrote(self, generation: int, names: Sequence[TableName], written: Sequence[InetTable]) -> None:
        """Note that the tables of these names were replaced by the written ones, which made a generation."""
        planned = self.planned_tables()
        others = (self.dumps or {}).keys() - set(names)
        if planned and not others and set(map(id, planned)) == set(map(id, written)):
            # The kernel acknowledged all of it, and any other writer changes the generation.
            self._cached = generation, None
        self.dumps = None

    def tables(
        self, channel: NfnetlinkChannel, *, with_dumps: bool = False
    ) -> tuple[int, tuple[InetTable, ...] | None]:
        """The generation of the rules, and Istio's tables in it in the plan's terms; None if they are the plan's.

        `dumps` are what they were read from, unless this object has written; with `with_dumps` in any case.
        """
        generation = channel.generation()
        if self._cached is None or self._cached[0] != generation or (with_dumps and self.dumps is None):
            generation, dumps = channel.consistent(lambda: dump_tables(channel), generation)
            self.dumps = dumps
            self._cached = generation, self._meaning(dumps)
        return self._cached

    def _meaning(self, dumps: dict[TableName, TableDump]) -> tuple[InetTable, ...] | None:
        if not dumps:
            return ()
        if self._planned:
            planned = {table.name: table for table in self.planned_tables()}
            if planned.keys() == dumps.keys() and all(
                holds(dump, self.encode(planned[name], to_send=False)) for name, dump in dumps.items()
            ):
                return None
        from istio_init.kernel.nft.native_decode import meaning, read_table

        return tuple([meaning(read_table(name, dump).table) for name, dump in dumps.items()])

    def planned_tables(self) -> tuple[InetTable, ...]:
        """What expect() was told, laid out."""
        tables = [self.layout(self._planned, name) for name in NAMES]
        return tuple([table for table in tables if table.chains])

    def layout(self, rulesets: Sequence[Ruleset], name: TableName) -> InetTable:
        """The table that holds what rulesets have in one of theirs; the same object for the same rules."""
        key = (name, *[(each.family, id(each.table(name))) for each in rulesets])
        laid_out = self._laid_out.get(key)
        if laid_out is None:
            laid_out = self._laid_out[key] = rulesets, layout(rulesets, name, self._fold)
        return laid_out[1]

    def encode(self, table: InetTable, *, to_send: bool = True) -> EncodedTable:
        """See TableEncoder.encode(); the same object for the same table."""
        key = id(table), to_send
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = table, self._encoder.encode(table, to_send=to_send)
        return encoded[1]

    def _fold(self, parts: Sequence[Rule | Run], family: Family) -> merge.Folded:
        key = id(parts), family
        if key not in self._folded:
            self._folded[key] = parts, merge.fold(parts, family)
        return self._folded[key][1]


def stored_tables(channel: NfnetlinkChannel) -> tuple[StoredTable, ...]:
    """Istio's tables as the kernel holds them, with what their rules have counted."""
    from istio_init.kernel.nft.native_decode import read_table

    _, dumps = channel.consistent(lambda: dump_tables(channel))
    return tuple([read_table(name, dump) for name, dump in dumps.items()])
