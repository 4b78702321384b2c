"""Writing Istio's inet tables: all changes in one batch, for the generation of the rules that was read."""

from __future__ import annotations

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError
from istio_init.kernel.netlink.batch import BatchChannel, after
from istio_init.kernel.netlink.channel import AnswerLost
from istio_init.kernel.nft.native_dump import emptying
from istio_init.kernel.nft.native_encode import deletion
from istio_init.model.inet import NAMES
from istio_init.model.rules import FAMILIES, Ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.kernel.netlink.batch import Message
    from istio_init.kernel.nft.native import Desired, Nftables
    from istio_init.kernel.nft.native_encode import Subject
    from istio_init.model.inet import InetTable
    from istio_init.model.rules import TableName

# How often a batch is made anew because another program wrote meanwhile.
_ATTEMPTS = 50


def write(firewall: Nftables, desired: Sequence[Desired]) -> None:
    """Make all changes in one batch; each table that they are about is replaced as a whole."""
    names = tuple(dict.fromkeys(name for _, name, _ in desired))
    for _ in range(_ATTEMPTS):
        with BatchChannel() as channel:
            generation, tables = firewall.tables(channel, with_dumps=True)
            existing = firewall.planned_tables() if tables is None else tables
            messages, subjects, written = _batch(firewall, names, desired, existing)
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
                firewall.wrote(after(generation), names, written)
                return
    raise KernelError(
        f"nftables: other programs wrote {_ATTEMPTS} times while {', '.join(NAMES[each] for each in names)} "
        "were being written; nothing was written; stop them, and run again"
    )


def _batch(
    firewall: Nftables, names: tuple[TableName, ...], desired: Sequence[Desired], existing: tuple[InetTable, ...]
) -> tuple[list[Message], list[Subject], list[InetTable]]:
    """The messages that replace the tables, what each is about, and the tables that are written."""
    messages: list[Message] = []
    subjects: list[Subject] = []
    written: list[InetTable] = []
    dumps = firewall.dumps or {}
    for table in names:
        changed = {family: planned_table for family, each, planned_table in desired if each == table}
        rulesets: list[Ruleset] = []
        for family in FAMILIES:
            if family not in changed:
                # A chain without rules belongs to both families, and must not keep the table of the other alive.
                kept = firewall.ruleset(tuple([each for each in existing if each.name == table]), family)
                if any(chain.count for each in kept.tables for chain in each.chains):
                    rulesets.append(kept)
            elif (planned_table := changed[family]) is not None:
                rulesets.append(Ruleset(family, (planned_table,)))
        planned = firewall.layout(rulesets, table)
        encoded = firewall.encode(planned) if planned.chains else None
        if (dump := dumps.get(table)) is not None:
            removed = emptying(table, dump, encoded) if encoded else [deletion(table)]
            messages += removed
            subjects += [(NAMES[table], "", 0, None)] * len(removed)
        if encoded:
            messages += encoded.messages
            subjects += encoded.subjects
            written.append(planned)
    return messages, subjects, written
