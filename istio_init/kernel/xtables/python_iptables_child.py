"""Edits tables as kernel/xtables/firewall.py does, with python-iptables in place of its handles and structs.

For python_iptables.py's child processes alone: importing this brings all that importing iptc brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import iptc

from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.libiptc import Handle
from istio_init.kernel.xtables.pack_chain import entries_of
from istio_init.kernel.xtables.python_iptables_rules import TableReader, build
from istio_init.kernel.xtables.sockopt import COMMITTING, OPENING, StepError
from istio_init.model.rules import IPV4, Chain, Table, ordered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.kernel.xtables.sockopt import TableSocket
    from istio_init.model.rules import Family, Ruleset, TableName


class Engine(Libiptc):
    """A Firewall for one call."""

    def handle(self, family: Family, name: TableName) -> Handle:
        """A handle of python-iptables on one table as it is, for an edit."""
        self._handle = TableHandle(family, name)
        return self._handle

    def _read(self, family: Family, name: TableName, socket: TableSocket, expecting: Ruleset | None) -> Table:
        del socket, expecting
        with TableHandle(family, name) as handle:
            return handle.whole()

    def entries(self, family: Family, name: TableName, chain: Chain) -> list[bytes | PackedRun]:
        """A chain's rules, built by libxtables; the chains that they jump to exist."""
        del name
        return [build(rule, family, self._handle.table) for rule in chain.rules]


class TableHandle(Handle):
    """A table of python-iptables with the methods of libiptc's handle; StepError as there."""

    def __init__(self, family: Family, name: TableName) -> None:
        """Creates the table if the namespace does not have it."""
        self._family, self._name = family, name
        # Past its cache: tables of the same name would share one handle, and so their edits.
        kind = iptc.Table if family == IPV4 else iptc.Table6
        self.table: Any = object.__new__(kind)
        try:
            self.table._init(name, False)
        except iptc.IPTCError as error:
            raise _refused(OPENING) from error

    def __exit__(self, *_: object) -> None:
        self.table.close()

    def whole(self) -> Table:
        """The table as it stood."""
        reader = TableReader(self.table, self._family)
        chains = {}
        for chain in self.table.chains:
            rules = tuple(reader.rules(chain.name))
            policy, _ = self.table.get_policy(chain.name)
            chains[chain.name] = Chain(chain.name, rules, policy.name if policy else None)
        return Table(self._name, ordered(self._name, chains))

    def append(self, chain: str, parts: Iterable[bytes | PackedRun]) -> None:
        """Put entries at the end of a chain."""
        for entry in entries_of(parts):
            self._edit("append_entry", chain, entry)

    def _edit(self, function: str, chain: str, *arguments: Any) -> None:
        try:
            if function == "delete_num_entry":
                # Its own delete_entry takes the first rule that looks like it, which may be another program's.
                done = self.table._iptc.iptc_delete_num_entry(chain.encode(), *arguments, self.table._handle)
                if done != 1:
                    raise _refused(f"delete a rule of {chain}")
            else:
                getattr(self.table, function)(chain, *arguments)
        except iptc.IPTCError as error:
            raise _refused(f"{function.replace('_', ' ')} {chain}") from error

    def commit(self) -> None:
        """Replace the kernel's table in one step."""
        try:
            self.table.commit()
        except iptc.IPTCError as error:
            raise _refused(COMMITTING) from error


def _refused(step: str) -> StepError:
    """The error with libiptc's number, which python-iptables drops for its text."""
    return StepError(step, iptc.ip4tc._get_errno_loc()[0])
