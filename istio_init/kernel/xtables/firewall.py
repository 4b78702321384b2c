"""The Firewall of the legacy tables: whole tables through libiptc, one commit each.

Reading bypasses libiptc and decodes the kernel's entries. Writing uses it, because it keeps the counters of rules that
stay; only a long list, in a table without rules of other programs, is written by replace_table.py. A commit that would
undo another program's edit is not made: the table is read once more just before, and everything starts over where it
has changed.
"""

from __future__ import annotations

import errno

from istio_init.errors import KernelError
from istio_init.kernel.xtables.decode_table import is_exactly, unpack_table
from istio_init.kernel.xtables.libiptc import Handle, functions
from istio_init.kernel.xtables.pack_chain import entries_of, pack_chain
from istio_init.kernel.xtables.sockopt import COMMITTING, OPENING, PASSING, READS, StepError, TableSocket, is_empty
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.model.compare import TableChange, chain_of, edit, own_part, recognised
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS, Ruleset, Run, Table, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.compare import Edit
    from istio_init.model.rules import Chain, Family, TableName

# Values of a long run. For fewer, bypassing libiptc would save less than a tenth of a start.
_LONG = 500

# Attempts to edit a table that other programs write to meanwhile.
_ATTEMPTS = 100


class Libiptc:
    """kernel.Firewall over libip4tc and libip6tc, for the network namespace that it is first used in."""

    def __init__(self) -> None:
        self._sockets: dict[Family, TableSocket] = {}
        self._libraries: dict[Family, dict[str, Any]] = {}
        # What has been packed already, by family, table and chain, with the chain that it was made from.
        self._packed: dict[tuple[Family, TableName, str], tuple[Chain, list[bytes | PackedRun]]] = {}

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """As Firewall.read. Tables, chains and rules that equal those of `expecting` are the same objects.

        Its rules must have the kernel's normal form (no address of prefix 0, no ports 0 to 65535), as those of
        capture.py and of iptables_restore.parse have.
        """
        names = existing_tables(family)
        if names is None:
            # Without root the tables can't be listed. Querying the wanted ones creates no other table.
            names = tuple(table.name for table in expecting.tables) if expecting else tuple(BUILTIN_CHAINS)
        if not names:
            return Ruleset(family, ())
        try:
            socket = self._socket(family)
            return Ruleset(family, tuple([self._read(family, name, socket, expecting) for name in names]))
        except StepError as error:
            raise _refusal(error, family, "", None) from error

    def _socket(self, family: Family) -> TableSocket:
        """The family's socket, kept: another for each table would take as long as planning its rules."""
        if family not in self._sockets:
            self._sockets[family] = TableSocket(family)
        return self._sockets[family]

    def _read(self, family: Family, name: TableName, socket: TableSocket, expecting: Ruleset | None) -> Table:
        table = expecting.table(name) if expecting else None
        chains = table.chains if table else ()
        expected = {chain.name: (chain, self._entries(family, name, chain)) for chain in chains if _is_istios(chain)}
        answers = socket.table(name)
        if table and is_exactly(table, family, answers, expected):
            return table
        return unpack_table(name, family, answers, expected)

    def _entries(self, family: Family, name: TableName, chain: Chain) -> list[bytes | PackedRun]:
        """A chain's rules, packed; kept for the read-back."""
        key = family, name, chain.name
        packed = self._packed.get(key)
        if packed is None or packed[0] is not chain:
            packed = self._packed[key] = chain, pack_chain(chain, family)
        return packed[1]

    def replace(self, family: Family, wanted: Table) -> None:
        """As Firewall.replace."""
        self._edit(TableChange(family, wanted.name, wanted))

    def restore(self, family: Family, wanted: Table, like: Table) -> None:
        """As Restoring.restore."""
        self._edit(TableChange(family, wanted.name, wanted, None, like))

    def remove(self, family: Family, name: TableName, wanted: Table | None = None) -> None:
        """As Firewall.remove."""
        names = existing_tables(family)
        if names is None or name in names:
            self._edit(TableChange(family, name, None, wanted))

    def _edit(self, change: TableChange) -> None:
        """Make a change, which with `wanted` None removes Istio's rules; again while other programs write."""
        family, name, wanted = change.family, change.name, change.desired
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    if self._attempt(self._socket(family), change):
                        return
                except StepError as error:
                    # libiptc reads the table, too, and nothing is written yet.
                    if error.step != OPENING or error.errno not in PASSING or attempt >= READS:
                        raise
        except StepError as error:
            if error.step == COMMITTING and self._holds(change):
                return
            raise _refusal(error, family, name, wanted) from error
        raise KernelError(
            f"{family} {name}: another program wrote to the table {_ATTEMPTS} times while it was being edited; "
            "nothing was written; find that program (it does not take the xtables lock), and run again"
        )

    def _holds(self, change: TableChange) -> bool:
        """Whether a commit that failed was made: the kernel replaces the table first, and sets its counters then."""
        wanted = change.desired
        try:
            found = unpack_table(change.name, change.family, self._socket(change.family).table(change.name))
        except StepError:
            return False  # the error to report is that of the commit
        own = own_part(found, wanted or change.known)
        return own is None if wanted is None else own is not None and own.chains == wanted.chains

    def _attempt(self, socket: TableSocket, change: TableChange) -> bool:
        """Write once; False where another program wrote to the table meanwhile."""
        family, wanted = change.family, change.desired
        if wanted is not None and _is_long(wanted):
            from istio_init.kernel.xtables.replace_table import Unsuited, write

            packed = {chain.name: self._entries(family, wanted.name, chain) for chain in wanted.chains}
            try:
                return write(socket, family, wanted, packed)
            except Unsuited:
                pass  # left to libiptc, which writes or rejects it
        return self._commit(socket, change)

    def _commit(self, socket: TableSocket, change: TableChange) -> bool:
        """Edit and commit through libiptc; False where another program wrote to the table meanwhile."""
        family, name, wanted = change.family, change.name, change.desired
        known = wanted or change.known
        like = recognised(change.like, known) if change.like else None
        answers = socket.table(name)
        if is_empty(answers[0]):
            found = Table(name, ordered(name, {}))  # as in every new pod: there is nothing to decode
        else:
            found = recognised(socket.without_istio_chains(name, answers), known)
        edits = {
            chain.name: edit(chain, chain_of(wanted, chain.name), chain_of(like, chain.name))
            for chain in found.chains
            if chain.name not in OWN_CHAINS
        }
        own = [chain.name for chain in found.chains if chain.name in OWN_CHAINS]
        if wanted is None and not own and not any(change.delete for change in edits.values()):
            return True

        # libiptc reads the table between these two reads.
        with self._open(family, name) as handle:
            try:
                self._take_out(handle, edits, own, wanted)
                if wanted is not None:
                    self._put_in(handle, edits, own, family, wanted)
            except StepError:
                if socket.is_still(name, answers):
                    raise
                return False
            return socket.is_still(name, answers) and _committed(handle, lambda: socket.is_still(name, answers))

    def _open(self, family: Family, name: TableName) -> Handle:
        """A handle on one table as it is."""
        if family not in self._libraries:
            self._libraries[family] = functions(family)
        return Handle(self._libraries[family], name)

    def _take_out(self, handle: Handle, edits: dict[str, Edit], own: list[str], wanted: Table | None) -> None:
        """Delete Istio's rules, then Istio's chains that aren't wanted: nothing jumps to them any more."""
        for name in own:
            handle.flush(name)
        for name, change in edits.items():
            for position in reversed(change.delete):
                handle.delete(name, position)
        for name in own:
            if wanted is None or wanted.chain(name) is None:
                handle.drop(name)

    def _put_in(self, handle: Handle, edits: dict[str, Edit], own: list[str], family: Family, wanted: Table) -> None:
        """Create the missing chains, then add the rules, which may jump to any of them."""
        for chain in wanted.chains:
            if chain.name not in edits and chain.name not in own:
                handle.create(chain.name)
        for chain in wanted.chains:
            entries = self._entries(family, wanted.name, chain)
            if change := edits.get(chain.name):
                preceding = change.preceding()
                for number, entry in enumerate(entries_of(entries)):
                    handle.insert(chain.name, number + preceding[number], entry)
            else:
                handle.append(chain.name, entries)


def _committed(handle: Handle, is_as_it_was: Callable[[], bool]) -> bool:
    """Commit; False where another program wrote to the table right before or meanwhile."""
    try:
        handle.commit()
    except StepError as error:
        if error.errno == errno.EAGAIN:
            return False
        # libiptc sets the counters in a second step, which fails where another program wrote after the first.
        if error.errno == errno.EINVAL and not is_as_it_was():
            return False
        raise
    return True


def _is_long(table: Table) -> bool:
    runs = [part for chain in table.chains for part in chain.parts if isinstance(part, Run)]
    return any(len(run.values) > _LONG for run in runs)


def _is_istios(chain: Chain) -> bool:
    for part in chain.parts:
        for rule in part.unit if isinstance(part, Run) else (part,):
            if not rule.ours:
                return False
    return True


def _refusal(error: StepError, family: Family, name: str, wanted: Table | None) -> KernelError:
    """The error for the user; its texts are imported only here."""
    from istio_init.kernel.xtables.refusal import explain

    return explain(error, family, name, wanted)
