"""Edits a legacy table: through libiptc, or, where a list is long, as a whole (replace_table.py).

A commit that would undo another program's edit is not made: the table is read once more just before, and everything
starts over where it has changed. A run that finds everything in place does not import this module.
"""

from __future__ import annotations

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError
from istio_init.kernel.xtables.pack_chain import entries_of
from istio_init.kernel.xtables.sockopt import COMMITTING, OPENING, PASSING, READS, StepError, is_empty
from istio_init.model.rules import OWN_CHAINS, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from istio_init.kernel.xtables.firewall import Libiptc
    from istio_init.kernel.xtables.libiptc import Handle
    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.kernel.xtables.sockopt import TableSocket
    from istio_init.model.compare import TableChange
    from istio_init.model.ownership import Edit
    from istio_init.model.rules import Chain, Table

    Pack: TypeAlias = Callable[[Chain], list[bytes | PackedRun]]

# Values of a long run. For fewer, bypassing libiptc would save less than a tenth of a start.
_LONG = 500

# Attempts to edit a table that other programs write to meanwhile.
_ATTEMPTS = 100


def edit_table(firewall: Libiptc, change: TableChange) -> None:
    """Make a change; without `desired` it removes Istio's rules. Repeats while other programs write to the table."""
    family, name, desired = change.family, change.name, change.desired
    try:
        for attempt in range(_ATTEMPTS):
            try:
                if _attempt(firewall, firewall.socket(family), change):
                    return
            except StepError as error:
                # libiptc reads the table, too, and nothing is written yet.
                if error.step != OPENING or error.errno not in PASSING or attempt >= READS:
                    raise
    except StepError as error:
        if error.step == COMMITTING and _holds(firewall, change):
            return
        from istio_init.kernel.xtables.refusal import explain

        raise explain(error, family, name, desired) from error
    raise KernelError(
        f"{family} {name}: another program wrote to the table {_ATTEMPTS} times while it was being edited; "
        "nothing was written; find that program (it does not take the xtables lock), and run again"
    )


def _holds(firewall: Libiptc, change: TableChange) -> bool:
    """Whether a failed commit took effect: the kernel replaces the table first, and sets its counters afterwards."""
    from istio_init.kernel.xtables.unpack_table import unpack_table
    from istio_init.model.ownership import own_part

    desired = change.desired
    try:
        table = unpack_table(change.name, change.family, firewall.socket(change.family).table(change.name))
    except StepError:
        return False  # the error to report is that of the commit
    own = own_part(table, desired or change.unsigned)
    return own is None if desired is None else own is not None and own.chains == desired.chains


def _attempt(firewall: Libiptc, socket: TableSocket, change: TableChange) -> bool:
    """Write once; False where another program wrote to the table meanwhile."""
    family, name, desired = change.family, change.name, change.desired
    if desired is not None and _is_long(desired):
        from istio_init.kernel.xtables.replace_table import Unsuited, write

        try:
            packed = {chain.name: firewall.entries(family, name, chain) for chain in desired.chains}
            return write(socket, family, desired, packed)
        except Unsuited:
            pass  # left to libiptc, which writes or rejects it
    return _commit(firewall, socket, change)


def _commit(firewall: Libiptc, socket: TableSocket, change: TableChange) -> bool:
    """Edit and commit through libiptc; False where another program wrote to the table meanwhile."""
    family, name, desired = change.family, change.name, change.desired
    answers = socket.table(name)
    edits: dict[str, Edit] = {}
    own: list[str] = []
    if not is_empty(answers[0]):  # as it is in every new pod
        edits, own = _edits(socket.without_istio_chains(name, answers), change)
    if desired is None and not own and not any(change.delete for change in edits.values()):
        return True

    # libiptc reads the table between these two reads.
    with firewall.handle(family, name) as handle:
        try:
            _take_out(handle, edits, own, desired)
            if desired is not None:
                _put_in(handle, edits, own, desired, lambda chain: firewall.entries(family, name, chain))
        except StepError:
            if socket.is_still(name, answers):
                raise
            return False
        return socket.is_still(name, answers) and _committed(handle, lambda: socket.is_still(name, answers))


def _edits(current: Table, change: TableChange) -> tuple[dict[str, Edit], list[str]]:
    """The edits of the built-in chains and of other programs' chains, by name, and the names of Istio's chains."""
    from istio_init.model.ownership import chain_of, edit, recognised

    desired = change.desired
    own_rules = desired or change.unsigned
    like = recognised(change.like, own_rules) if change.like else None
    current = recognised(current, own_rules)
    edits = {
        chain.name: edit(chain, chain_of(desired, chain.name), chain_of(like, chain.name))
        for chain in current.chains
        if chain.name not in OWN_CHAINS
    }
    return edits, [chain.name for chain in current.chains if chain.name in OWN_CHAINS]


def _take_out(handle: Handle, edits: dict[str, Edit], own: list[str], desired: Table | None) -> None:
    """Delete Istio's rules, then Istio's chains that are not desired: nothing jumps to them any more."""
    for name in own:
        handle.flush(name)
    for name, change in edits.items():
        for position in reversed(change.delete):
            handle.delete(name, position)
    for name in own:
        if desired is None or desired.chain(name) is None:
            handle.drop(name)


def _put_in(handle: Handle, edits: dict[str, Edit], own: list[str], desired: Table, packed: Pack) -> None:
    """Create the missing chains, then pack and add the rules: python-iptables packs a jump to a chain that exists.

    Rules are appended to a chain without an edit, which is empty.
    """
    for chain in desired.chains:
        if chain.policy is None and chain.name not in edits and chain.name not in own:
            handle.create(chain.name)
    for chain in desired.chains:
        entries = packed(chain)
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
