"""How many packets each rule has counted, read from the kernel's own tables; fast enough to ask after each packet.

The layout is that of ipt_entry and ip6t_entry in <linux/netfilter_ipv4/ip_tables.h> and its IPv6 twin, read here
a second time, apart from the program's own reading.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from istio_init.kernel.xtables.sockopt import TableSocket
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.model.rules import BUILTIN_CHAINS

if TYPE_CHECKING:
    from istio_init.model.rules import Family, TableName

# (table, chain, number from 1); the number behind the last rule's is the policy, or the end of the chain.
Place: TypeAlias = tuple[str, str, int]

# Of an entry: where its target's and the next entry's offsets, and its packet counter are.
OFFSETS = {"ipv4": 88, "ipv6": 140}
COUNTERS = {"ipv4": 96, "ipv6": 152}
# In struct ipt_getinfo, behind the name: valid_hooks, then hook_entry for each of the five hooks.
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


class RuleCounters:
    """The counters of all tables of one family, in the namespace of the thread that made it."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._socket = TableSocket(family)
        self._names: tuple[TableName, ...] = existing_tables(family) or ()
        self._places = {name: self._layout(name) for name in self._names}

    def read(self) -> Counter[Place]:
        """How many packets each rule has counted so far; those that counted none are left out."""
        counts: Counter[Place] = Counter()
        for name in self._names:
            _, entries = self._socket.table(name)
            for offset, place in self._places[name]:
                (packets,) = struct.unpack_from("=Q", entries, offset + COUNTERS[self._family])
                if packets:
                    counts[place] = packets
        return counts

    def _layout(self, name: TableName) -> list[tuple[int, Place]]:
        """Where each rule's entry lies in a table, and which rule it is."""
        info, entries = self._socket.table(name)
        starts = self._starts(name, info)
        places: list[tuple[int, Place]] = []
        chain, number, offset = "", 0, 0
        while offset < len(entries):
            target, following = struct.unpack_from("=HH", entries, offset + OFFSETS[self._family])
            kind = entries[offset + target + 2 : offset + target + 31].split(b"\0")[0]
            if kind == b"ERROR":
                chain, number = entries[offset + target + 32 : offset + target + 62].split(b"\0")[0].decode(), 0
            else:
                if offset in starts:
                    chain, number = starts[offset], 0
                number += 1
                places.append((offset, (name, chain, number)))
            offset += following
        return places

    def _starts(self, name: TableName, info: bytes) -> dict[int, str]:
        entries = struct.unpack_from("=5I", info, 36)
        return {entries[HOOKS.index(hook)]: hook for hook in BUILTIN_CHAINS[name]}

    def close(self) -> None:
        """Close the socket."""
        self._socket.__exit__()
