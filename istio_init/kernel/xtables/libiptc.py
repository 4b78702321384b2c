"""libip4tc and libip6tc through the C half of ctypes: one table, edited in memory and committed to the kernel at once.

The functions are those of <libiptc/libiptc.h> of iptables 1.6 to 1.8 (soname 2). The libraries are opened by
soname, through the dynamic linker only: nothing is searched in PATH and no process is started. They take no lock.
"""

from __future__ import annotations

from istio_init.errors import KernelError, limit_remedy
from istio_init.kernel.host import libc
from istio_init.kernel.host.libc import Pointer, function, get_errno
from istio_init.kernel.host.process import exhausted
from istio_init.kernel.xtables.sockopt import COMMITTING, OPENING, StepError
from istio_init.model.rules import IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.rules import Family, TableName

# The last argument of each but init is the handle; an entry is bytes, a position is an int.
_FUNCTIONS = (
    *("init", "free", "commit"),
    *("create_chain", "delete_chain", "flush_entries", "append_entry", "insert_entry", "delete_num_entry"),
)


def functions(family: Family) -> dict[str, Any]:
    """The functions of one family's library, by name without the prefix; KernelError where it isn't installed."""
    soname, prefix = ("libip4tc.so.2", "iptc") if family == IPV4 else ("libip6tc.so.2", "ip6tc")
    try:
        library = libc.library(soname)
    except OSError as error:
        package = soname.partition(".")[0] + "2"
        missing = f"install it (Debian and Ubuntu: {package}; Fedora: iptables-libs; Alpine: libip4tc, libip6tc)"
        # dlopen(3) returns a text, no number; if a limit was the cause, it is still reached.
        number = exhausted()
        raise KernelError(f"{soname} can't be opened ({error}): {limit_remedy(number) or missing}", number) from error
    return {name: function(library, f"{prefix}_{name}", Pointer if name == "init" else int) for name in _FUNCTIONS}


class Handle:
    """A copy of a table, and edits to it, which commit() writes; freed at the end of `with`.

    StepError with the kernel's or libiptc's number where a step fails.
    """

    def __init__(self, functions: dict[str, Any], name: TableName) -> None:
        """Creates the table where the namespace does not have it."""
        self._call = functions
        handle = functions["init"](name.encode())
        if not handle:
            raise StepError(OPENING, get_errno())
        self._handle = Pointer(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call["free"](self._handle)

    def create(self, chain: str) -> None:
        """Add an empty chain."""
        self._edit("create_chain", chain)

    def drop(self, chain: str) -> None:
        """Delete a chain that is empty and that nothing jumps to."""
        self._edit("delete_chain", chain)

    def flush(self, chain: str) -> None:
        """Delete all rules of a chain."""
        self._edit("flush_entries", chain)

    def delete(self, chain: str, position: int) -> None:
        """Delete the rule at a position, from 0, of a chain."""
        self._edit("delete_num_entry", chain, position)

    def insert(self, chain: str, position: int, entry: bytes) -> None:
        """Insert an entry (of encode_rule.pack) at a position, from 0, of a chain; its jump's chain must exist."""
        self._edit("insert_entry", chain, entry, position)

    def append(self, chain: str, parts: Iterable[bytes | PackedRun]) -> None:
        """Append entries (of pack_chain) to a chain; the chains of their jumps must exist."""
        append, name = self._call["append_entry"], chain.encode(errors="surrogateescape")
        for part in parts:
            for entry in (part,) if isinstance(part, bytes) else part.entries():
                if not append(name, entry, self._handle):
                    raise StepError(f"append a rule to {chain}", get_errno())

    def _edit(self, function: str, chain: str, *arguments: object) -> None:
        if not self._call[function](chain.encode(errors="surrogateescape"), *arguments, self._handle):
            raise StepError(f"{function.replace('_', ' ')} {chain}", get_errno())

    def commit(self) -> None:
        """Replace the kernel's table in one step; rules that stay keep their counters.

        StepError with EAGAIN where the number of the kernel's entries has changed.
        """
        if not self._call["commit"](self._handle):
            raise StepError(COMMITTING, get_errno())
