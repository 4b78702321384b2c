"""A table laid out as the kernel hands it out, written down a second time: what unpack_table is held against.

After <linux/netfilter_ipv4/ip_tables.h>: built-in chains with their policies first, then each chain of a user's
between a head that bears its name and a return, then a last entry that bears none.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables.decode_rule import EntryReader
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, Jump, Rule, Verdict

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Table

HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
VERDICTS = {"DROP": -1, "ACCEPT": -2, "QUEUE": -4, "RETURN": -5}


class Blob:
    """The kernel's `answers` for a table; every entry bears counters and a mask of hooks."""

    def __init__(self, table: Table, family: Family) -> None:
        self._family = family
        self._fields, self._header = (84, 112) if family == IPV4 else (136, 168)
        self._entries = b""
        self._count = 0
        self.starts: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        underflows: dict[str, int] = {}
        for chain in table.chains:
            if chain.policy is None:
                self._error(chain.name)
            self.starts[chain.name] = len(self._entries)
            for rule in chain.rules:
                self._rule(rule)
            underflows[chain.name] = len(self._entries)
            self._standard(VERDICTS[chain.policy or "RETURN"])
        self._error("ERROR")
        for place, chain_name in self._jumps:
            offset = struct.pack("=i", self.starts[chain_name])
            self._entries = self._entries[:place] + offset + self._entries[place + 4 :]
        builtin = BUILTIN_CHAINS[table.name]
        hooks = [number for number, hook in enumerate(HOOKS) if hook in builtin]
        info = struct.pack(
            "=32sI5I5III",
            table.name.encode(),
            sum(1 << number for number in hooks),
            *(self.starts[hook] if hook in builtin else 0xFFFF for hook in HOOKS),
            *(underflows[hook] if hook in builtin else 0xFFFF for hook in HOOKS),
            self._count,
            len(self._entries),
        )
        self.answers = info, self._entries

    def _entry(self, fields: bytes, signature: bytes, matches: bytes, target: bytes) -> None:
        target_offset = self._header + len(matches)
        offsets = struct.pack("=HH", target_offset, target_offset + len(target))
        counted = struct.pack("=I", 0x1F).ljust(self._header - self._fields - 8 - 16, b"\0") + struct.pack(
            "=QQ", 7, 300
        )
        self._entries += fields + signature + offsets + counted + matches + target
        self._count += 1

    def _standard(self, verdict: int) -> None:
        self._entry(bytes(self._fields), bytes(4), b"", struct.pack("=H30xi4x", 40, verdict))

    def _error(self, name: str) -> None:
        self._entry(bytes(self._fields), bytes(4), b"", struct.pack("=H29sx32s", 64, b"ERROR", name.encode()))

    def _rule(self, rule: Rule) -> None:
        packed = pack(rule, self._family)
        target_offset, _ = struct.unpack_from("=HH", packed, self._fields + 4)
        target = packed[target_offset:]
        end = len(self._entries) + len(packed)
        match rule.target:
            case Verdict():
                target = struct.pack("=H30xi4x", 40, VERDICTS.get(rule.target.name, end))
            case Jump():
                target = struct.pack("=H30xi4x", 40, 0)
                self._jumps.append((end - 8, rule.target.chain))
        signature = b"ISTI" if rule.ours else bytes(4)
        self._entry(packed[: self._fields], signature, packed[self._header : target_offset], target)


def unpack(entry: bytes, family: Family, *, is_standard: bool) -> Rule:
    """An entry's rule as it is read."""
    return EntryReader(family).rule(entry, is_standard=is_standard)


def offsets(entry: bytes, family: Family) -> tuple[int, int]:
    """Where an entry's target begins, and where the entry ends."""
    target, end = struct.unpack_from("=HH", entry, LAYOUTS[family].struct.size + 4)
    return target, end
