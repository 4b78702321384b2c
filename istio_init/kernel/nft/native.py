"""The Firewall on native nftables, through netlink: all tables and both families in one batch.

The tables istio-proxy-raw, -mangle and -nat of the family inet belong to this program alone: writing one replaces
everything in it. The kernel accepts a batch only if nobody has written since the tables were read; if somebody has,
they are read again. No library and no program is needed.
"""

from __future__ import annotations

import errno

from istio_init.errors import KernelError
from istio_init.formats.nft import layout, merge
from istio_init.kernel.netlink.batch import BatchChannel
from istio_init.kernel.netlink.channel import AnswerLost, attributes
from istio_init.kernel.netlink.nfnetlink import HEAD, NFPROTO_INET, NFT_NAME, NfnetlinkChannel, name
from istio_init.kernel.nft.native_decode import StoredTable, TableDump, meaning, read_table, set_name
from istio_init.kernel.nft.native_encode import Batch
from istio_init.model import inet
from istio_init.model.rules import FAMILIES, Ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from istio_init.model.compare import TableChange
    from istio_init.model.rules import Family, Rule, Run, Table, TableName

    # A table of one family and what to make of it; None removes it.
    Desired: TypeAlias = tuple[Family, TableName, Table | None]

# How often a batch is made anew because another program wrote meanwhile.
_ATTEMPTS = 50


class Nftables:
    """The tables istio-proxy-* of the calling thread's network namespace; see kernel.Firewall."""

    def __init__(self) -> None:
        # The tables at a generation of the rules, which changes whenever anyone writes.
        self._cached: tuple[int, tuple[inet.InetTable, ...]] | None = None
        # Chains' rules as nftables has them, with the rules that they were made from.
        self._folded: dict[tuple[int, Family], tuple[Sequence[Rule | Run], merge.Folded]] = {}

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """See kernel.Firewall. A set that is what rules of `expecting` become reads as those rules."""
        with NfnetlinkChannel() as channel:
            _, tables = self._tables(channel)
        return layout.ruleset(tables, family, expecting, self._fold)

    def replace(self, family: Family, wanted: Table) -> None:
        """See kernel.Firewall."""
        self._write(((family, wanted.name, wanted),))

    def remove(self, family: Family, name: TableName, wanted: Table | None = None) -> None:  # noqa: ARG002 (as it says)
        """See kernel.Firewall. Everything in these tables is Istio's, whatever `wanted` says."""
        self._write(((family, name, None),))

    def write(self, changes: tuple[TableChange, ...]) -> None:
        """See kernel.Transactional."""
        self._write([(change.family, change.name, change.wanted) for change in changes])

    def _write(self, desired: Sequence[Desired]) -> None:
        """Make all changes in one batch; each table that they are about is replaced as a whole."""
        names = tuple(dict.fromkeys(table for _, table, _ in desired))
        for _ in range(_ATTEMPTS):
            with BatchChannel() as channel:
                generation, existing = self._tables(channel)
                batch = self._batch(names, desired, existing)
                if not batch.messages:
                    return
                try:
                    channel.commit(batch.messages, generation)
                except AnswerLost:
                    continue  # it may have been committed: writing the same again is harmless
                except OSError as refused:
                    if refused.errno != errno.ERESTART:
                        from istio_init.kernel.nft.native_refusal import explain

                        raise explain(refused, names, batch) from refused
                else:
                    return
        raise KernelError(
            f"nftables: other programs wrote {_ATTEMPTS} times while {', '.join(inet.NAMES[each] for each in names)} "
            "were being written; nothing was written; stop them, and run again"
        )

    def _batch(
        self, names: tuple[TableName, ...], desired: Sequence[Desired], existing: tuple[inet.InetTable, ...]
    ) -> Batch:
        batch = Batch()
        for table in names:
            if any(each.name == table for each in existing):
                batch.delete(table)
        for table in names:
            changed = {family: wanted for family, each, wanted in desired if each == table}
            kept = [family for family in FAMILIES if family not in changed]
            rulesets = [Ruleset(family, (wanted,)) for family, wanted in changed.items() if wanted is not None]
            rulesets += [layout.ruleset([each for each in existing if each.name == table], family) for family in kept]
            rulesets.sort(key=lambda ruleset: FAMILIES.index(ruleset.family))
            planned = layout.layout(rulesets, table, self._fold)
            if planned.chains:
                batch.create(planned)
        return batch

    def _tables(self, channel: NfnetlinkChannel) -> tuple[int, tuple[inet.InetTable, ...]]:
        """The generation of the rules, and Istio's tables in it in the plan's terms."""
        generation = channel.generation()
        if self._cached is None or self._cached[0] != generation:
            generation, tables = stored_tables(channel, generation)
            self._cached = generation, tuple(meaning(each.table) for each in tables)
        return self._cached

    def _fold(self, parts: Sequence[Rule | Run], family: Family) -> merge.Folded:
        key = id(parts), family
        if key not in self._folded:
            self._folded[key] = parts, merge.fold(parts, family)
        return self._folded[key][1]


def stored_tables(channel: NfnetlinkChannel, generation: int | None = None) -> tuple[int, tuple[StoredTable, ...]]:
    """The generation of the rules, which the caller may know, and Istio's tables in it as the kernel holds them."""
    return channel.consistent(lambda: tuple(_stored_tables(channel)), generation)


def _stored_tables(channel: NfnetlinkChannel) -> list[StoredTable]:
    bodies = {own: data for data in channel.table_bodies() if (own := _own_name(data))}
    chains: dict[str, list[bytes]] = {}
    for data in channel.chains(NFPROTO_INET) if bodies else ():
        chains.setdefault(name_of_table(data), []).append(data)
    tables = []
    for table, own in inet.NAMES.items():
        if own in bodies:
            sets = tuple(channel.sets(NFPROTO_INET, own))
            elements = {each: tuple(channel.elements(NFPROTO_INET, own, each)) for each in map(set_name, sets)}
            rules = tuple(channel.rules(NFPROTO_INET, own))
            dump = TableDump(bodies[own], tuple(chains.get(own, ())), rules, sets, elements)
            tables.append(read_table(table, dump))
    return tables


def name_of_table(data: bytes) -> str:
    """The table that a message about a table, or something in it, names."""
    return name(attributes(data[HEAD.size :]).get(NFT_NAME, b""))


def _own_name(data: bytes) -> str:
    """The name of a table, if it is one of Istio's."""
    found = name_of_table(data) if data[0] == NFPROTO_INET else ""
    return found if found in inet.NAMES.values() else ""
