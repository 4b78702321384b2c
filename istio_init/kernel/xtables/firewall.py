"""The Firewall of the legacy tables: whole tables through libiptc, one commit each.

Reading goes past libiptc, straight to the kernel's entries. Writing goes through it, as it keeps the counters
of rules that stay; but for a long list where no rule of others stands (whole_table.py). A commit that would undo
somebody else's edit is not made: the table is looked at once more just before, and everything starts over where
it is no longer what the edits were made for.
"""

from __future__ import annotations

import errno

from istio_init.errors import KernelError
from istio_init.kernel.xtables.decode_table import is_exactly, unpack_table
from istio_init.kernel.xtables.libiptc import Handle, functions
from istio_init.kernel.xtables.pack_chain import entries_of, pack_chain
from istio_init.kernel.xtables.sockopt import TableSocket, existing_tables, is_empty
from istio_init.model.compare import edit, recognised
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS, Ruleset, Run, Table, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.compare import Edit
    from istio_init.model.rules import Chain, Family, TableName

# A run of more values is long. Up to here, writing it past libiptc would save less than a tenth of a start.
_LONG = 500

# How often a table is edited anew because somebody else wrote to it meanwhile.
_ATTEMPTS = 100


class Libiptc:
    """kernel.Firewall over libip4tc and libip6tc, for the network namespace that it is first used in."""

    def __init__(self) -> None:
        self._sockets: dict[Family, TableSocket] = {}
        self._libraries: dict[Family, dict[str, Any]] = {}
        # What has been packed already, by family, table and chain, with the chain that it was made from.
        self._packed: dict[tuple[Family, TableName, str], tuple[Chain, list[bytes | PackedRun]]] = {}

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """As Firewall.read. What of `expecting` is all ours and found as such is the very table, chain or rule.

        They must be spelled as the kernel's answer would be (no address of prefix 0, no ports 0 to 65535), as
        those of capture.py and of save.load are.
        """
        names = existing_tables(family)
        if names is None:
            # Not root: better to bring tables into being that are wanted anyway than to give up.
            names = tuple(table.name for table in expecting.tables) if expecting else tuple(BUILTIN_CHAINS)
        if not names:
            return Ruleset(family, ())
        try:
            socket = self._socket(family)
            return Ruleset(family, tuple([self._read(family, name, socket, expecting) for name in names]))
        except OSError as error:
            raise _refusal(error, family, "", None) from error

    def _socket(self, family: Family) -> TableSocket:
        """The family's socket. Another for each table would take as long as planning its rules."""
        if family not in self._sockets:
            self._sockets[family] = TableSocket(family)
        return self._sockets[family]

    def _read(self, family: Family, name: TableName, socket: TableSocket, expecting: Ruleset | None) -> Table:
        table = expecting.table(name) if expecting else None
        chains = table.chains if table else ()
        expected = {chain.name: (chain, self._entries(family, name, chain)) for chain in chains if _all_ours(chain)}
        answers = socket.table(name)
        if table and is_exactly(table, family, answers, expected):
            return table
        return unpack_table(name, family, answers, expected)

    def _entries(self, family: Family, name: TableName, chain: Chain) -> list[bytes | PackedRun]:
        """A chain's rules, packed: once for what is asked for again."""
        key = family, name, chain.name
        packed = self._packed.get(key)
        if packed is None or packed[0] is not chain:
            packed = self._packed[key] = chain, pack_chain(chain, family)
        return packed[1]

    def replace(self, family: Family, wanted: Table) -> None:
        """As Firewall.replace."""
        self._edit(family, wanted.name, wanted, None)

    def remove(self, family: Family, name: TableName, wanted: Table | None = None) -> None:
        """As Firewall.remove."""
        names = existing_tables(family)
        if names is None or name in names:
            self._edit(family, name, None, wanted)

    def _edit(self, family: Family, name: TableName, wanted: Table | None, known: Table | None) -> None:
        """Bring what is ours to `wanted`, or with None take it away, `known` too; anew while others write."""
        try:
            for _ in range(_ATTEMPTS):
                if self._attempt(self._socket(family), family, name, wanted, known):
                    return
        except OSError as error:
            raise _refusal(error, family, name, wanted) from error
        raise KernelError(
            f"{family} {name}: somebody else wrote to the table {_ATTEMPTS} times while it was being edited; "
            "nothing was written; find out who (a program that takes no xtables lock), and run again"
        )

    def _attempt(
        self, socket: TableSocket, family: Family, name: TableName, wanted: Table | None, known: Table | None
    ) -> bool:
        """Write once; False where somebody else wrote to the table meanwhile: try again."""
        if wanted is not None and _is_long(wanted):
            from istio_init.kernel.xtables.replace_table import Unsuited, write

            packed = {chain.name: self._entries(family, name, chain) for chain in wanted.chains}
            try:
                return write(socket, family, wanted, packed)
            except Unsuited:
                pass  # libiptc writes it, or refuses it
        return self._commit(socket, family, name, wanted, known)

    def _commit(
        self, socket: TableSocket, family: Family, name: TableName, wanted: Table | None, known: Table | None
    ) -> bool:
        """Edit and commit through libiptc; False where somebody else wrote to the table meanwhile."""
        answers = socket.table(name)
        if is_empty(answers[0]):
            found = Table(name, ordered(name, {}))  # as in every new pod: nothing need be taken apart
        else:
            found = recognised(socket.others(name, answers), wanted or known)
        edits = {
            chain.name: edit(chain, wanted.chain(chain.name) if wanted else None)
            for chain in found.chains
            if chain.name not in OWN_CHAINS
        }
        own = [chain.name for chain in found.chains if chain.name in OWN_CHAINS]
        if wanted is None and not own and not any(change.delete for change in edits.values()):
            return True

        # What libiptc reads here lies between the two looks at the table.
        with self._open(family, name) as handle:
            try:
                self._take_out(handle, edits, own, wanted)
                if wanted is not None:
                    self._put_in(handle, edits, own, family, wanted)
            except OSError:
                if socket.is_still(name, answers):
                    raise
                return False
            return socket.is_still(name, answers) and _committed(handle, lambda: socket.is_still(name, answers))

    def _open(self, family: Family, name: TableName) -> Handle:
        """A handle on one table as it stands."""
        if family not in self._libraries:
            self._libraries[family] = functions(family)
        return Handle(self._libraries[family], name)

    def _take_out(self, handle: Handle, edits: dict[str, Edit], own: list[str], wanted: Table | None) -> None:
        """Take out all that is ours, and chains of ours that aren't wanted: these once nothing jumps to them."""
        for name in own:
            handle.flush(name)
        for name, change in edits.items():
            for position in reversed(change.delete):
                handle.delete(name, position)
        for name in own:
            if wanted is None or wanted.chain(name) is None:
                handle.drop(name)

    def _put_in(self, handle: Handle, edits: dict[str, Edit], own: list[str], family: Family, wanted: Table) -> None:
        """Make the chains that are missing, then put in the rules, which may jump to any of them."""
        for chain in wanted.chains:
            if chain.name not in edits and chain.name not in own:
                handle.create(chain.name)
        for chain in wanted.chains:
            entries = self._entries(family, wanted.name, chain)
            if change := edits.get(chain.name):
                top = len(change.top)
                for number, entry in enumerate(entries_of(entries)):
                    handle.insert(chain.name, number if number < top else number + change.at, entry)
            else:
                handle.append(chain.name, entries)


def _committed(handle: Handle, is_as_it_was: Callable[[], bool]) -> bool:
    """Commit; False where somebody else wrote to the table right before or meanwhile."""
    try:
        handle.commit()
    except BlockingIOError:
        return False
    except OSError as error:
        # libiptc gives counters back in a second step: that fails where somebody wrote right behind the first.
        if error.errno == errno.EINVAL and not is_as_it_was():
            return False
        raise
    return True


def _is_long(table: Table) -> bool:
    runs = [part for chain in table.chains for part in chain.parts if isinstance(part, Run)]
    return any(len(run.values) > _LONG for run in runs)


def _all_ours(chain: Chain) -> bool:
    for part in chain.parts:
        for rule in part.unit if isinstance(part, Run) else (part,):
            if not rule.ours:
                return False
    return True


def _refusal(error: OSError, family: Family, name: str, wanted: Table | None) -> KernelError:
    """The kernel's refusal in words; the words are only read where they are needed."""
    from istio_init.kernel.xtables.refusal import explain

    return explain(error, family, name, wanted)
