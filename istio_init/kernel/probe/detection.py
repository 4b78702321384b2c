"""Where rules stand and which kinds of tables work here, asked of the kernel without leaving a trace.

A legacy table that does not exist is never asked for: asking would bring it into being. docs/backends.md says what
follows from the answers, and why.
"""

from __future__ import annotations

import posix  # the C half of os

from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import CHAIN_NAME, FAMILIES, HEAD, NFPROTO_INET, NfnetlinkChannel, name
from istio_init.kernel.xtables.sockopt import NAMES, TableSocket, existing_tables, is_empty
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.rules import Family, TableName

    Backend: TypeAlias = Literal["legacy", "nft"]

# As in nft.NAMES, which a legacy run has no other use for.
_NATIVE = {"istio-proxy-raw", "istio-proxy-mangle", "istio-proxy-nat"}


class Tables(Record):
    """Which tables stand: the legacy ones, iptables-nft's, and whether there is one of our native ones.

    `nft` is None where nftables does not work here.
    """

    legacy: tuple[tuple[Family, TableName], ...]
    nft: tuple[tuple[Family, TableName], ...] | None
    native: bool


def tables() -> Tables:
    """What stands in the calling thread's namespace."""
    legacy = tuple((family, each) for family in FAMILIES for each in existing_tables(family) or ())
    try:
        with NfnetlinkChannel() as channel:
            there = channel.tables()
    except KernelError:
        return Tables(legacy, None, native=False)
    theirs = tuple(
        (family, table) for family in FAMILIES for table in BUILTIN_CHAINS if (FAMILIES[family], table) in there
    )
    return Tables(legacy, theirs, any(number == NFPROTO_INET and table in _NATIVE for number, table in there))


def decide(found: Tables, families: tuple[Family, ...]) -> tuple[Backend, str]:
    """Which iptables to write to, and why in words. KernelError as reading raises.

    Legacy if it has rules; else nft if it has; else whichever works, legacy first. Where both have rules, those that
    ours are among count.
    """
    in_legacy = _legacy_rules(found)
    in_nft, own_in_nft = _nft_rules(found)
    if in_legacy and own_in_nft and not _own_in_legacy(found):
        return "nft", "rules of ours stand in iptables-nft's tables"
    if in_legacy:
        return "legacy", "the legacy tables have rules here"
    if in_nft:
        return "nft", "iptables-nft's tables have rules here, the legacy tables none"
    missing = [family for family in families if not _legacy_works(family)]
    if not missing:
        return "legacy", "no iptables has rules here, and the legacy tables work"
    if found.nft is not None:
        return "nft", f"this kernel has no legacy tables for {' and '.join(missing)}, and nftables works"
    return "legacy", "neither the legacy tables nor nftables seem to work here"


def _legacy_works(family: Family) -> bool:
    """Whether the kernel has the legacy tables of a family; it shows the file from when their module is loaded."""
    try:
        posix.stat(NAMES[family])
    except OSError:
        return False
    return True


def _legacy_rules(found: Tables) -> bool:
    """Whether any legacy table has rules, or chains of users'."""
    for family, table in found.legacy:
        try:
            with TableSocket(family) as socket:
                empty = is_empty(socket.info(table))
        except OSError as error:
            from istio_init.kernel.xtables.refusal import explain

            raise explain(error, family, table, None) from error
        if not empty:
            return True
    return False


def _own_in_legacy(found: Tables) -> bool:
    """Whether a legacy table has a chain of ours: a chain's name stands as it is in the table's entries."""
    for family, table in found.legacy:
        with TableSocket(family) as socket:
            entries = socket.table(table)[1]
        if any(chain.encode() + b"\0" in entries for chain in OWN_CHAINS):
            return True
    return False


def _nft_rules(found: Tables) -> tuple[bool, bool]:
    """Whether a table of iptables-nft's has a rule, and whether one has a chain of ours."""
    if not found.nft:
        return False, False
    with NfnetlinkChannel() as channel:
        rules = any(channel.rules(FAMILIES[family], table) for family, table in found.nft)
        chains = [data for family in FAMILIES for data in channel.chains(FAMILIES[family])]
    names = {name(attributes(data[HEAD.size :])[CHAIN_NAME]) for data in chains}
    return rules, not names.isdisjoint(OWN_CHAINS)
