"""Which legacy tables a namespace has, read from files: a query by socket option would create the table."""

from __future__ import annotations

import posix as os  # the C half of os

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError, limit_remedy
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Family, TableName

# Files of the calling thread's network namespace that list its tables.
NAMES = {IPV4: "/proc/thread-self/net/ip_tables_names", IPV6: "/proc/thread-self/net/ip6_tables_names"}
# Exists wherever proc(5) is mounted.
_THREAD = "/proc/thread-self"

# More than the names of the five possible tables, a line each.
_NAMES_BYTES = 4096


def existing_tables(family: Family) -> tuple[TableName, ...] | None:
    """The tables of the namespace, in the order in which a packet meets them; None where listing them is forbidden.

    The file belongs to root of the user namespace that owns the network namespace. Others need DAC_OVERRIDE to read it,
    or the right to join that user namespace. A kernel without the family has no such file.
    KernelError where /proc is not mounted, or can't be read: that is no reason to believe that there are no tables.
    """
    try:
        descriptor = os.open(NAMES[family], os.O_RDONLY | os.O_CLOEXEC)
        try:
            names = os.read(descriptor, _NAMES_BYTES).split()
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EACCES:  # by its permissions; EPERM is a sandbox's
            return _as_owner(family)
        if error.errno == errno.ENOENT and _is_mounted():
            return ()
        missing = error.errno == errno.ENOENT
        why = "mount /proc" if missing else limit_remedy(error.errno or 0) or "see that /proc can be read"
        text = f"{NAMES[family]}: the tables can't be listed: {error.strerror}; {why}"
        raise KernelError(text, error.errno or 0) from error
    return _listed(names)


def _listed(names: list[bytes]) -> tuple[TableName, ...]:
    return tuple(name for name in BUILTIN_CHAINS if name.encode() in names)


def _as_owner(family: Family) -> tuple[TableName, ...] | None:
    from istio_init.kernel.xtables.table_names_as_owner import read_as_owner

    names = read_as_owner(NAMES[family], _NAMES_BYTES)
    return None if names is None else _listed(names.split())


def _is_mounted() -> bool:
    try:
        os.stat(_THREAD)
    except OSError:
        return False
    return True
