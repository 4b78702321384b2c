"""Determines which backends have rules, and which work on this machine, without side effects.

A legacy table that does not exist is never queried: that would create it. docs/backends.md has the decisions that
follow, with their reasons.
"""

from __future__ import annotations

import posix  # the C half of os

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import CHAIN_NAME, FAMILIES, HEAD, NFPROTO_INET, NfnetlinkChannel, name
from istio_init.kernel.xtables.table_names import NAMES, existing_tables
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeAlias, TypeVar

    from istio_init.kernel.xtables.sockopt import TableSocket
    from istio_init.model.rules import Family, TableName

    Answer = TypeVar("Answer")
    Backend: TypeAlias = Literal["legacy", "nft"]

# The values of inet.NAMES, which a legacy run does not import.
_NATIVE = {"istio-proxy-raw", "istio-proxy-mangle", "istio-proxy-nat"}


# Errors of a kernel without nftables, or of a process that may not use it. Any other error is unexpected.
_NO_NFTABLES = frozenset(
    {
        *(errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOENT, errno.ENOSYS),
        *(errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT),
    }
)


class Tables(Record):
    """The existing tables: legacy ones, those of iptables-nft, and whether there is a native one of Istio.

    `nft` is None where nftables does not work on this machine.
    """

    legacy: tuple[tuple[Family, TableName], ...]
    nft: tuple[tuple[Family, TableName], ...] | None
    native: bool


def tables() -> Tables:
    """The tables of the calling thread's namespace. KernelError where they can't be listed."""
    legacy = tuple((family, each) for family in FAMILIES for each in existing_tables(family) or ())
    there = _nftables()
    if there is None:
        return Tables(legacy, None, native=False)
    theirs = tuple(
        (family, table) for family in FAMILIES for table in BUILTIN_CHAINS if (FAMILIES[family], table) in there
    )
    return Tables(legacy, theirs, any(number == NFPROTO_INET and table in _NATIVE for number, table in there))


def _nftables() -> tuple[tuple[int, str], ...] | None:
    """All nftables tables, each by its family's number and its name; None where nftables does not work here.

    Which is believed only if it is so twice: a call that failed once says nothing about the tables.
    """
    refused = 0
    while True:
        try:
            with NfnetlinkChannel() as channel:
                return channel.tables()
        except KernelError as error:
            if error.errno not in _NO_NFTABLES or refused not in {0, error.errno}:
                raise
            if refused:
                return None
            refused = error.errno


def decide(tables: Tables, families: tuple[Family, ...]) -> tuple[Backend, str]:
    """The backend to write to, and the reason for the log. KernelError where tables can't be read.

    Legacy if it has rules; else nft if it has; else the first that works, legacy before nft. Where both have rules,
    the one with Istio's.
    """
    in_legacy = _legacy_rules(tables)
    in_nft, own_in_nft = _nft_rules(tables)
    if in_legacy and own_in_nft and not _own_in_legacy(tables):
        return "nft", "the iptables-nft tables have Istio rules"
    if in_legacy:
        return "legacy", "the legacy tables have rules"
    if in_nft:
        return "nft", "the iptables-nft tables have rules, the legacy tables have none"
    missing = [family for family in families if not _legacy_works(family)]
    if not missing:
        return "legacy", "there are no rules yet, and the legacy tables work"
    if tables.nft is not None:
        return "nft", f"this kernel has no legacy tables for {' and '.join(missing)}, and nftables works"
    return "legacy", "neither the legacy tables nor nftables seem to work"


def _legacy_works(family: Family) -> bool:
    """Whether the kernel has the legacy tables of a family: the file exists once their module is loaded."""
    try:
        posix.stat(NAMES[family])
    except FileNotFoundError:
        return False
    except OSError:
        pass  # which says nothing about the kernel: writing will tell
    return True


def _legacy_rules(tables: Tables) -> bool:
    """Whether any legacy table has rules, or user-defined chains."""
    if not tables.legacy:
        return False
    from istio_init.kernel.xtables.sockopt import TableSocket, is_empty

    return any(not is_empty(_query(*each, TableSocket.info)) for each in tables.legacy)


def _own_in_legacy(tables: Tables) -> bool:
    """Whether a legacy table has a chain of Istio's: the names of chains are in the table's entries."""
    from istio_init.kernel.xtables.sockopt import TableSocket

    for each in tables.legacy:
        _, entries = _query(*each, TableSocket.table)
        if any(chain.encode() + b"\0" in entries for chain in OWN_CHAINS):
            return True
    return False


def _query(family: Family, table: TableName, question: Callable[[TableSocket, TableName], Answer]) -> Answer:
    """Ask the kernel about an existing table. KernelError where it refuses."""
    from istio_init.kernel.xtables.sockopt import StepError, TableSocket

    try:
        with TableSocket(family) as socket:
            return question(socket, table)
    except StepError as error:
        from istio_init.kernel.xtables.refusal import explain

        raise explain(error, family, table, None) from error


def _nft_rules(tables: Tables) -> tuple[bool, bool]:
    """Whether a table of iptables-nft has a rule, and whether one has a chain of Istio's."""
    if not tables.nft:
        return False, False
    with NfnetlinkChannel() as channel:
        rules = any(channel.rules(FAMILIES[family], table) for family, table in tables.nft)
        chains = [data for family in FAMILIES for data in channel.chains(FAMILIES[family])]
    names = {name(attributes(data[HEAD.size :])[CHAIN_NAME]) for data in chains}
    return rules, not names.isdisjoint(OWN_CHAINS)
