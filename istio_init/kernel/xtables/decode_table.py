"""Compares a whole table of the kernel with what was written. unpack_table.py decodes tables that differ.

An entry is compared, and unpacked, in the form that encode_rule.py gives it.
"""

from __future__ import annotations

from istio_init.kernel.xtables.encode_match import HEAD, standard
from istio_init.kernel.xtables.encode_rule import ERROR, ERROR_SIZE, HOOKS, INFO, OFFSETS, VERDICT, VERDICTS
from istio_init.kernel.xtables.ip_header import LAYOUTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.rules import Chain, Family, Table

    # Chains of rules that are ours by name, with their entries (runs.pack_chain).
    Expected: TypeAlias = Mapping[str, tuple[Chain, list[bytes | PackedRun]]]

NAME_AT = 2  # in a match or target


def is_exactly(table: Table, family: Family, answers: tuple[bytes, bytes | bytearray], expected: Expected) -> bool:
    """Whether the kernel's table equals this one, apart from counters, and has no other program's rules.

    `answers` and `expected` are those of unpack_table.
    """
    info, entries = answers
    return len(expected) == len(table.chains) and TableBlob(family, entries, expected).holds(table, info)


class TableBlob:
    """All entries of a table as the kernel returns them."""

    def __init__(self, family: Family, entries: bytes | bytearray, expected: Expected) -> None:
        self._layout = LAYOUTS[family]
        self._entries = entries
        self._expected = expected
        # Standard targets as `pack` makes them, by the kernel's verdicts: numbers, or offsets of chains' first entries.
        self._standards = {verdict: standard(name) for verdict, name in VERDICTS.items()}

    def holds(self, table: Table, info: bytes) -> bool:
        """Whether these are the entries of this table's chains, all of them expected, and no others."""
        _, _, *numbers = INFO.unpack(info)
        firsts, policies = numbers[: len(HOOKS)], numbers[len(HOOKS) :]
        start = 0
        for chain in table.chains:
            begin = start if chain.policy else self._behind_head(start, chain.name)
            end = None if begin is None else self._behind(begin, self._expected[chain.name][1])
            if end is None:
                return False
            if chain.policy:
                hook = HOOKS.index(chain.name)
                if (firsts[hook], policies[hook]) != (begin, end) or self._verdict(end) != chain.policy:
                    return False
            start = end + self._offsets(end)[1]
        # What ends every table.
        return start + self._offsets(start)[1] == len(self._entries)

    def _behind_head(self, start: int, name: str) -> int | None:
        """Where the rules of a user-defined chain begin whose head is at an offset; None if there is no such head."""
        target, size = self._offsets(start)
        if not self._entries.startswith(ERROR, start + target + NAME_AT) or self._error_name(start + target) != name:
            return None
        return start + size

    def _behind(self, start: int, packed: list[bytes | PackedRun]) -> int | None:
        """Where these entries end, which begin at an offset; None if the entries there differ."""
        for part in packed:
            if not (self._is(start, part) if isinstance(part, bytes) else self._run_matches(start, part)):
                return None
            start += len(part)
        return start

    def _verdict(self, start: int) -> str:
        """The verdict of an entry without matches; empty for other entries."""
        target, _ = self._offsets(start)
        (verdict,) = VERDICT.unpack_from(self._entries, start + target + HEAD.size)
        return VERDICTS.get(verdict, "")

    def _offsets(self, start: int) -> tuple[int, int]:
        """The offsets of an entry's target and end, from the entry's start."""
        target, end = OFFSETS.unpack_from(self._entries, start + self._layout.counters_at - OFFSETS.size)
        return target, end

    def _run_matches(self, start: int, run: PackedRun) -> bool:
        """Whether the entries from an offset on are those of a run: the first unit is compared, then the values."""
        if len(self._entries) < start + len(run):
            return False
        at = 0
        for size in run.sizes:
            if not self._is(start + at, run.unit[at : at + size]):
                return False
            at += size
        return run.matches(self._entries, start)

    def _is(self, start: int, packed: bytes) -> bool:
        """Whether the entry at an offset is, as `pack` makes it, this one; see _normal, which takes longer."""
        entries, layout = self._entries, self._layout
        if not entries.startswith(packed[: layout.counters_at], start):
            return False
        # Equal bytes have the same offsets of target and end.
        target, end = OFFSETS.unpack_from(packed, layout.counters_at - OFFSETS.size)
        if entries[start + target + NAME_AT]:
            return entries.startswith(packed[layout.size :], start + layout.size)
        if not entries.startswith(packed[layout.size : target], start + layout.size):
            return False
        return self._standard(start + target, start + end) == packed[target:]

    def _standard(self, target: int, end: int) -> bytes | None:
        """A standard target as `pack` encodes it; None if it jumps to a place where no chain begins."""
        (verdict,) = VERDICT.unpack_from(self._entries, target + HEAD.size)
        packed = self._standards.get(verdict)
        if packed is None:
            if verdict == end:
                return standard("")  # falls through to the next rule
            if self._entries.startswith(ERROR, verdict - ERROR_SIZE + NAME_AT):
                packed = self._standards[verdict] = standard(self._error_name(verdict - ERROR_SIZE))
        return packed

    def _error_name(self, target: int) -> str:
        """The name of the chain whose head has this target."""
        field = self._entries[target + HEAD.size : target + ERROR_SIZE]
        return field.partition(b"\0")[0].decode(errors="surrogateescape")
