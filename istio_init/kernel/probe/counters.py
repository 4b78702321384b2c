"""Reads rules with their counters, for `show`; a run that writes does not import it.

It reads existing tables only, so it creates none.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from istio_init.kernel.netlink import nfnetlink
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.nft import compat_decode, compat_dump
from istio_init.kernel.nft.native import stored_tables
from istio_init.kernel.xtables.encode_rule import INFO
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.kernel.xtables.refusal import explain
from istio_init.kernel.xtables.required_modules import entry_size
from istio_init.kernel.xtables.sockopt import StepError, TableSocket
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.kernel.xtables.unpack_table import unpack_table
from istio_init.model.counters import Count, CountedInet, CountedTable
from istio_init.model.rules import BUILTIN_CHAINS, FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.nft.compat_dump import CompatTable
    from istio_init.kernel.nft.native_decode import StoredTable
    from istio_init.model.rules import Family, TableName

# By the numbers of <linux/netfilter.h>, NF_INET_*.
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")

_OFFSETS = Struct("=HH")  # of an entry's target, and of the next entry
_COUNTERS = Struct("=QQ")  # struct xt_counters: packets and bytes
_ERROR, _NAME_AT, _DATA_AT, _ERROR_SIZE = b"ERROR\0", 2, 32, 64  # struct xt_error_target
_CHAIN_COUNTERS = 8  # NFTA_CHAIN_COUNTERS


def tables(backend: str) -> tuple[CountedTable, ...]:
    """The legacy tables, or iptables-nft's, of both families. KernelError where they can't be read."""
    read = _legacy if backend == "legacy" else _nft
    return tuple(table for family in FAMILIES for table in read(family))


def inet_tables() -> tuple[CountedInet, ...]:
    """Istio's native tables that exist. KernelError if they can't be read."""
    with nfnetlink.NfnetlinkChannel() as channel:
        stored = stored_tables(channel)
    return tuple(map(_inet, stored))


def _inet(stored: StoredTable) -> CountedInet:
    chains = ((chain, tuple(map(_count, stored.counts[chain.name]))) for chain in stored.table.chains)
    return CountedInet(stored.table.name, tuple(chains))


def _legacy(family: Family) -> Iterator[CountedTable]:
    for name in existing_tables(family) or ():
        try:
            with TableSocket(family) as socket:
                answers = socket.table(name)
        except StepError as error:
            raise explain(error, family, name, None) from error
        table = unpack_table(name, family, answers)
        counters = dict(_met(family, answers))
        counts = {chain: tuple(map(_count, met[:-1])) for chain, met in counters.items()}
        policies: dict[str, Count] = {
            chain: Count(*met[-1]) for chain, met in counters.items() if chain in BUILTIN_CHAINS[name]
        }
        yield CountedTable(family, table, counts, policies)


def _met(family: Family, answers: tuple[bytes, bytearray]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The counters of each chain's entries, its policy (or the return at its end) last: struct ipt_entry.

    `answers` are IPT_SO_GET_INFO's and IPT_SO_GET_ENTRIES'. A chain of a user's begins with an entry whose target
    is called ERROR and bears the chain's name.
    """
    info, entries = answers
    _, valid, *numbers = INFO.unpack(info)
    starts = {numbers[hook]: name for hook, name in enumerate(HOOKS) if valid & 1 << hook}
    layout = LAYOUTS[family]
    name, start = "", 0
    met: list[tuple[int, int]] = []
    while start < len(entries):
        target, _ = _OFFSETS.unpack_from(entries, start + layout.counters_at - _OFFSETS.size)
        is_head = entries.startswith(_ERROR, start + target + _NAME_AT)
        if is_head or start in starts:
            if name:
                yield name, met
            field = entries[start + target + _DATA_AT : start + target + _ERROR_SIZE].partition(b"\0")[0]
            name, met = field.decode(errors="surrogateescape") if is_head else starts[start], []
        if not is_head:
            met.append(_COUNTERS.unpack_from(entries, start + layout.size - _COUNTERS.size))
        start += entry_size(entries[start : start + layout.size], family)


def _nft(family: Family) -> Iterator[CountedTable]:
    with nfnetlink.NfnetlinkChannel() as channel:
        _, tables = channel.consistent(lambda: [*_nft_tables(channel, family)])
    yield from tables


def _nft_tables(channel: nfnetlink.NfnetlinkChannel, family: Family) -> Iterator[CountedTable]:
    for name, table in compat_dump.read_tables(channel, family).items():
        policies = dict(_policies(channel, family, name))
        counts = _counted(channel, family, table)
        # A base chain that no packet meets has another name, so that its rules do not pass for effective ones.
        renamed = {table.effective_name(chain): met for chain, met in counts.items()}
        yield CountedTable(family, table.effective, renamed, policies)


def _counted(
    channel: nfnetlink.NfnetlinkChannel, family: Family, table: CompatTable
) -> dict[str, tuple[Count | None, ...]]:
    """The counters of a table's rules by their handles, since the table may have changed after it was read."""
    met: dict[bytes, Count | None] = {}
    for data in channel.rules(nfnetlink.FAMILIES[family], table.table.name):
        attrs = attributes(data[nfnetlink.HEAD.size :])
        met[attrs[compat_dump.RULE_HANDLE]] = _count(compat_decode.counted(attrs))
    return {chain: tuple(map(met.get, handles)) for chain, handles in table.handles.items()}


def _policies(channel: nfnetlink.NfnetlinkChannel, family: Family, table: TableName) -> Iterator[tuple[str, Count]]:
    """The counters of built-in chains' policies, which iptables-nft creates and this program does not."""
    for data in channel.chains(nfnetlink.FAMILIES[family]):
        attrs = attributes(data[nfnetlink.HEAD.size :])
        if nfnetlink.name(attrs[nfnetlink.NFT_NAME]) == table and _CHAIN_COUNTERS in attrs:
            yield (
                nfnetlink.name(attrs[nfnetlink.CHAIN_NAME]),
                Count(*compat_decode.counter_numbers(attributes(attrs[_CHAIN_COUNTERS]))),
            )


def _count(met: tuple[int, int] | None) -> Count | None:
    return None if met is None else Count(*met)
