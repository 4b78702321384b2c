"""The Firewall on native nftables, through netlink: all tables and both families in one batch.

The tables istio-proxy-raw, -mangle and -nat of the family inet belong to this program alone: writing one replaces
everything in it. The kernel accepts a batch only if no other program has written since the tables were read; otherwise
they are read again. No library and no program is needed.
"""

from __future__ import annotations

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError
from istio_init.formats.nft import layout, merge
from istio_init.kernel.netlink.batch import BatchChannel, after
from istio_init.kernel.netlink.channel import AnswerLost
from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
from istio_init.kernel.nft.native_dump import dump_tables, emptying, holds
from istio_init.kernel.nft.native_encode import TableEncoder, deletion
from istio_init.model.inet import NAMES
from istio_init.model.rules import FAMILIES, Ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from istio_init.kernel.nft.native_decode import StoredTable
    from istio_init.kernel.nft.native_dump import TableDump
    from istio_init.kernel.nft.native_encode import EncodedTable, Message, Subject
    from istio_init.model.compare import TableChange
    from istio_init.model.inet import InetTable
    from istio_init.model.rules import Family, Rule, Run, Table, TableName

    # A table of one family and what to make of it; None removes it.
    Desired: TypeAlias = tuple[Family, TableName, Table | None]

# How often a batch is made anew because another program wrote meanwhile.
_ATTEMPTS = 50


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
        self._dumps: dict[TableName, TableDump] | None = None
        # Chains' rules as nftables has them, with the rules that they were made from.
        self._folded: dict[tuple[int, Family], tuple[Sequence[Rule | Run], merge.Folded]] = {}

    def expect(self, planned: tuple[Ruleset, ...]) -> None:
        """Say what the kernel is hoped to hold of both families: a table holds both, and is compared as a whole."""
        self._planned = planned
        self._cached = None

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """See kernel.Firewall. A set that is what rules of `expecting` become reads as those rules."""
        with NfnetlinkChannel() as channel:
            _, tables = self._tables(channel)
        if tables is not None:
            return layout.ruleset(tables, family, expecting, self._fold)
        if any(expecting is each for each in self._planned):
            return expecting  # type: ignore[return-value]  # it is not None
        return layout.ruleset(self._planned_tables(), family, expecting, self._fold)

    def inet_tables(self) -> tuple[InetTable, ...]:
        """Istio's tables in the plan's terms, as `plan` compares them."""
        with NfnetlinkChannel() as channel:
            _, tables = self._tables(channel)
        return self._planned_tables() if tables is None else tables

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
        """Make all changes in one batch; each table that they are about is replaced as a whole."""
        names = tuple(dict.fromkeys(name for _, name, _ in desired))
        for _ in range(_ATTEMPTS):
            with BatchChannel() as channel:
                if self._dumps is None:
                    self._cached = None
                generation, tables = self._tables(channel)
                existing = self._planned_tables() if tables is None else tables
                messages, subjects, written = self._batch(names, desired, existing)
                if not messages:
                    return
                try:
                    channel.commit(messages, generation)
                except AnswerLost:
                    continue  # it may have been committed: writing the same again is harmless
                except OSError as refused:
                    if refused.errno != errno.ERESTART:
                        from istio_init.kernel.nft.native_refusal import explain

                        raise explain(refused, names, messages, subjects) from refused
                else:
                    if self._holds_plan(names, written):
                        # The kernel acknowledged all of it, and any other writer changes the generation.
                        self._cached = after(generation), None
                    self._dumps = None
                    return
        raise KernelError(
            f"nftables: other programs wrote {_ATTEMPTS} times while {', '.join(NAMES[each] for each in names)} "
            "were being written; nothing was written; stop them, and run again"
        )

    def _batch(
        self, names: tuple[TableName, ...], desired: Sequence[Desired], existing: tuple[InetTable, ...]
    ) -> tuple[list[Message], list[Subject], list[InetTable]]:
        """The messages that replace the tables, what each is about, and the tables that are written."""
        messages: list[Message] = []
        subjects: list[Subject] = []
        written: list[InetTable] = []
        dumps = self._dumps or {}
        for table in names:
            changed = {family: planned_table for family, each, planned_table in desired if each == table}
            rulesets: list[Ruleset] = []
            for family in FAMILIES:
                if family not in changed:
                    kept = layout.ruleset([each for each in existing if each.name == table], family)
                    # A chain without rules belongs to both families, and must not keep the table of the other alive.
                    if any(chain.count for each in kept.tables for chain in each.chains):
                        rulesets.append(kept)
                elif (planned_table := changed[family]) is not None:
                    rulesets.append(Ruleset(family, (planned_table,)))
            planned = self._layout(rulesets, table)
            encoded = self._encode(planned) if planned.chains else None
            if (dump := dumps.get(table)) is not None:
                removed = emptying(table, dump, encoded) if encoded else [deletion(table)]
                messages += removed
                subjects += [(NAMES[table], "", 0, None)] * len(removed)
            if encoded:
                messages += encoded.messages
                subjects += encoded.subjects
                written.append(planned)
        return messages, subjects, written

    def _holds_plan(self, names: tuple[TableName, ...], written: Sequence[InetTable]) -> bool:
        """Whether Istio's tables are the planned ones, after those of these names were written."""
        planned = self._planned_tables()
        if not planned or not (self._dumps or {}).keys() <= set(names):
            return False
        return set(map(id, planned)) == set(map(id, written))

    def _tables(self, channel: NfnetlinkChannel) -> tuple[int, tuple[InetTable, ...] | None]:
        """The generation of the rules, and Istio's tables in it in the plan's terms; None if they are the plan's."""
        generation = channel.generation()
        if self._cached is None or self._cached[0] != generation:
            generation, dumps = channel.consistent(lambda: dump_tables(channel), generation)
            self._dumps = dumps
            self._cached = generation, self._meaning(dumps)
        return self._cached

    def _meaning(self, dumps: dict[TableName, TableDump]) -> tuple[InetTable, ...] | None:
        if not dumps:
            return ()
        if self._planned:
            planned = {table.name: table for table in self._planned_tables()}
            if planned.keys() == dumps.keys() and all(
                holds(dump, self._encode(planned[name], elements=False)) for name, dump in dumps.items()
            ):
                return None
        from istio_init.kernel.nft.native_decode import meaning, read_table

        return tuple([meaning(read_table(name, dump).table) for name, dump in dumps.items()])

    def _planned_tables(self) -> tuple[InetTable, ...]:
        tables = [self._layout(self._planned, name) for name in NAMES]
        return tuple([table for table in tables if table.chains])

    def _layout(self, rulesets: Sequence[Ruleset], name: TableName) -> InetTable:
        key = (name, *[(each.family, id(each.table(name))) for each in rulesets])
        laid_out = self._laid_out.get(key)
        if laid_out is None:
            laid_out = self._laid_out[key] = rulesets, layout.layout(rulesets, name, self._fold)
        return laid_out[1]

    def _encode(self, table: InetTable, *, elements: bool = True) -> EncodedTable:
        key = id(table), elements
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = table, self._encoder.encode(table, elements=elements)
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
