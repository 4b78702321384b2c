"""The Firewall of the legacy tables: whole tables through libiptc, one commit each.

Reading bypasses libiptc and decodes the kernel's entries. Writing (edit_table.py) uses it, because it keeps the
counters of rules that stay; only a long list, in a table without other programs' rules, is written by replace_table.py.
"""

from __future__ import annotations

from istio_init.kernel.xtables.decode_table import is_exactly
from istio_init.kernel.xtables.pack_chain import pack_chain
from istio_init.kernel.xtables.sockopt import StepError, TableSocket
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.model.compare import TableChange
from istio_init.model.rules import BUILTIN_CHAINS, Ruleset, Run, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from istio_init.errors import KernelError
    from istio_init.kernel.xtables.libiptc import Handle
    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.rules import Chain, Family, TableName


class Libiptc:
    """kernel.Firewall over libip4tc and libip6tc, for the network namespace that it is first used in."""

    def __init__(self) -> None:
        self._sockets: dict[Family, TableSocket] = {}
        # The functions of libip4tc and libip6tc, once opened.
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
            # Without root the tables can't be listed. Querying the planned ones creates no other table.
            names = tuple(table.name for table in expecting.tables) if expecting else tuple(BUILTIN_CHAINS)
        if not names:
            return Ruleset(family, ())
        try:
            socket = self.socket(family)
            return Ruleset(family, tuple([self._read(family, name, socket, expecting) for name in names]))
        except StepError as error:
            raise _refusal(error, family, "", None) from error

    def socket(self, family: Family) -> TableSocket:
        """The family's socket, kept: another for each table would take as long as planning its rules."""
        if family not in self._sockets:
            self._sockets[family] = TableSocket(family)
        return self._sockets[family]

    def _read(self, family: Family, name: TableName, socket: TableSocket, expecting: Ruleset | None) -> Table:
        table = expecting.table(name) if expecting else None
        chains = table.chains if table else ()
        expected = {chain.name: (chain, self.entries(family, name, chain)) for chain in chains if _is_istios(chain)}
        answers = socket.table(name)
        if table and is_exactly(table, family, answers, expected):
            return table
        from istio_init.kernel.xtables.unpack_table import unpack_table

        return unpack_table(name, family, answers, expected)

    def entries(self, family: Family, name: TableName, chain: Chain) -> list[bytes | PackedRun]:
        """A chain's rules, packed; kept for the read-back."""
        key = family, name, chain.name
        packed = self._packed.get(key)
        if packed is None or packed[0] is not chain:
            packed = self._packed[key] = chain, pack_chain(chain, family)
        return packed[1]

    def handle(self, family: Family, name: TableName) -> Handle:
        """A handle of libiptc on one table as it is, for an edit."""
        from istio_init.kernel.xtables.libiptc import Handle, functions

        if family not in self._libraries:
            self._libraries[family] = functions(family)
        return Handle(self._libraries[family], name)

    def replace(self, family: Family, desired: Table) -> None:
        """As Firewall.replace."""
        self._edit(TableChange(family, desired.name, desired))

    def restore(self, family: Family, desired: Table, like: Table) -> None:
        """As Restoring.restore."""
        self._edit(TableChange(family, desired.name, desired, None, like))

    def remove(self, family: Family, name: TableName, unsigned: Table | None = None) -> None:
        """As Firewall.remove."""
        names = existing_tables(family)
        if names is None or name in names:
            self._edit(TableChange(family, name, None, unsigned))

    def _edit(self, change: TableChange) -> None:
        from istio_init.kernel.xtables.edit_table import edit_table

        edit_table(self, change)


def _is_istios(chain: Chain) -> bool:
    for part in chain.parts:
        for rule in part.unit if isinstance(part, Run) else (part,):
            if not rule.ours:
                return False
    return True


def _refusal(error: StepError, family: Family, name: str, desired: Table | None) -> KernelError:
    """The error for the user; its texts are imported only here."""
    from istio_init.kernel.xtables.refusal import explain

    return explain(error, family, name, desired)
