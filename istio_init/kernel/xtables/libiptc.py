"""libip4tc and libip6tc through ctypes' C half: one table, edited in memory and given back to the kernel in one commit.

The functions are those of <libiptc/libiptc.h> of iptables 1.6 to 1.8 (soname 2). The libraries are opened by
soname, through the dynamic linker alone: nothing is looked up in PATH and no process is started. They take
no lock.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.host import libc
from istio_init.kernel.host.libc import Pointer, function, get_errno
from istio_init.kernel.xtables.sockopt import OPENING
from istio_init.model.rules import IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.rules import Family, TableName

# The step that errors speak of, beside tables.OPENING and the edits.
COMMITTING = "commit the table"

# The last argument of each but init is the handle; an entry is bytes, or a Pointer; a position is an int.
_FUNCTIONS = (
    *("init", "free", "commit"),
    *("create_chain", "delete_chain", "flush_entries", "append_entry", "insert_entry", "delete_num_entry"),
)


def functions(family: Family) -> dict[str, Any]:
    """The functions of one family's library, by their names behind the prefix; KernelError where it isn't installed."""
    soname, prefix = ("libip4tc.so.2", "iptc") if family == IPV4 else ("libip6tc.so.2", "ip6tc")
    try:
        library = libc.library(soname)
    except OSError as error:
        package = soname.partition(".")[0] + "2"
        raise KernelError(
            f"{soname} can't be opened ({error}): install it "
            f"(Debian and Ubuntu: {package}; Fedora: iptables-libs; Alpine: libip4tc, libip6tc)"
        ) from error
    return {name: function(library, f"{prefix}_{name}", Pointer if name == "init" else int) for name in _FUNCTIONS}


class Handle:
    """A table as it stood when the handle was made, and edits to it; frees itself at the end of `with`.

    OSError with the kernel's or libiptc's number; its text is the step that failed.
    """

    def __init__(self, functions: dict[str, Any], name: TableName) -> None:
        """Brings the table into being where the namespace doesn't have it."""
        self._call = functions
        handle = functions["init"](name.encode())
        if not handle:
            raise OSError(get_errno(), OPENING)
        self._handle = Pointer(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call["free"](self._handle)

    def create(self, chain: str) -> None:
        """Add an empty chain."""
        self._edit("create_chain", chain)

    def drop(self, chain: str) -> None:
        """Take away a chain that is empty and that nothing jumps to."""
        self._edit("delete_chain", chain)

    def flush(self, chain: str) -> None:
        """Take all rules out of a chain."""
        self._edit("flush_entries", chain)

    def delete(self, chain: str, position: int) -> None:
        """Take the rule at a position, from 0, out of a chain."""
        self._edit("delete_num_entry", chain, position)

    def insert(self, chain: str, position: int, entry: bytes) -> None:
        """Put an entry (of xtables.pack) at a position, from 0, of a chain; all that it jumps to must be there."""
        self._edit("insert_entry", chain, entry, position)

    def append(self, chain: str, parts: Iterable[bytes | PackedRun]) -> None:
        """Put entries (of runs.pack_chain) at the end of a chain; all that they jump to must be there."""
        append, name = self._call["append_entry"], chain.encode(errors="surrogateescape")
        for part in parts:
            for entry in (part,) if isinstance(part, bytes) else part.entries():
                if not append(name, entry, self._handle):
                    raise OSError(get_errno(), f"append a rule to {chain}")

    def _edit(self, function: str, chain: str, *arguments: object) -> None:
        if not self._call[function](chain.encode(errors="surrogateescape"), *arguments, self._handle):
            raise OSError(get_errno(), f"{function.replace('_', ' ')} {chain}")

    def commit(self) -> None:
        """Give the table to the kernel as one; rules that stay keep their counters.

        BlockingIOError (EAGAIN) where the kernel's number of entries is no longer what it was.
        """
        if not self._call["commit"](self._handle):
            raise OSError(get_errno(), COMMITTING)
