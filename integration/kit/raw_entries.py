"""Every entry of other programs in a table, as its bytes, without counters, hooks and the targets of jumps.

Read here a second time, apart from the program's own reading, after <linux/netfilter_ipv4/ip_tables.h>.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables.sockopt import TableSocket
from istio_init.model.rules import IPV4, OWN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kit.namespace import Namespace
    from istio_init.model.rules import Family, TableName

SIGNATURE = b"ISTI"


def of_others(namespace: Namespace, family: Family, name: TableName) -> list[bytes]:
    """The entries that are neither signed nor in Istio chains, in order; jumps bear their chain's name."""
    entries = _read(namespace, family, name)
    return [entry for chain, entry in _entries(family, entries) if chain not in OWN_CHAINS and SIGNATURE not in entry]


def signed(namespace: Namespace, family: Family, name: TableName) -> list[bytes]:
    """The entries that bear our signature where it belongs."""
    at = 84 if family == IPV4 else 136
    entries = _read(namespace, family, name)
    return [entry for _, entry in _entries(family, entries) if entry[at : at + 4] == SIGNATURE]


def _read(namespace: Namespace, family: Family, name: TableName) -> bytes:
    def ask() -> bytes:
        with TableSocket(family) as socket:
            return bytes(socket.table(name)[1])

    return namespace.inside(ask)


def _entries(family: Family, entries: bytes) -> Iterator[tuple[str, bytes]]:
    """Each entry's chain (empty for built-in ones) and bytes."""
    fields, header = (84, 112) if family == IPV4 else (136, 168)
    places = []
    heads: dict[int, str] = {}  # by where they begin
    starts: dict[int, str] = {}  # of chains, by where their first rules begin
    start = 0
    while start < len(entries):
        target, end = struct.unpack_from("=HH", entries, start + fields + 4)
        places.append((start, start + target, start + end))
        if entries[start + target + 2 : start + target + 8] == b"ERROR\0":
            name = entries[start + target + 32 : start + target + 62].split(b"\0")[0].decode()
            heads[start] = starts[start + end] = name
        start += end
    chain = ""
    for start, target, end in places:
        chain = heads.get(start, chain)
        element = entries[target:end]
        (verdict,) = struct.unpack_from("=i", entries, target + 32)
        if element[2] == 0 and verdict >= 0:
            element = b"falls through" if verdict == end else f"jumps to {starts[verdict]}".encode()
        yield chain, entries[start : start + fields + 4] + entries[start + header : target] + element
