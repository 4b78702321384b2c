"""A whole table out of the kernel's answer: what is in it, or that it is just what was written.

An entry is compared, and unpacked, in the form that xtables.py gives it.
"""

from __future__ import annotations

from istio_init.kernel.xtables.encode_match import HEAD, standard
from istio_init.kernel.xtables.encode_rule import ERROR, ERROR_SIZE, HOOKS, INFO, OFFSETS, VERDICT, VERDICTS
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS, Chain, Table, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    from istio_init.kernel.xtables.decode_rule import EntryReader
    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.rules import Family, Rule, TableName

    # Chains of rules that are ours by name, with their entries (runs.pack_chain).
    Expected: TypeAlias = Mapping[str, tuple[Chain, list[bytes | PackedRun]]]

_NAME_AT = 2  # in a match or target


def is_exactly(wanted: Table, family: Family, answers: tuple[bytes, bytes | bytearray], expected: Expected) -> bool:
    """Whether the table of these answers is just this one, counters aside, with nothing of other programs in it.

    `answers` and `expected` are those of unpack_table.
    """
    info, entries = answers
    return len(expected) == len(wanted.chains) and _Blob(family, entries, expected).holds(wanted, info)


def unpack_table(
    name: TableName,
    family: Family,
    answers: tuple[bytes, bytes | bytearray],
    expected: Expected | None = None,
    *,
    own: bool = True,
) -> Table:
    """A table from the kernel's `answers` to IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, this without its head.

    A user's chain that is just as `expected` is the chain given; of another, entries that are among them are the
    very rules. What is expected need not be unpacked. With `own` off, Istio chains are there without their rules.
    """
    info, entries = answers
    blob = _Blob(family, entries, expected or {})
    chains = {}
    for chain, rules, policy in blob.chains(info, frozenset() if own else OWN_CHAINS):
        if isinstance(rules, Chain):
            chains[chain] = rules
        else:
            chains[chain] = Chain(chain, tuple(rules), policy if chain in BUILTIN_CHAINS[name] else None)
    return Table(name, ordered(name, chains))


class _Blob:
    """All entries of a table as the kernel hands them out."""

    def __init__(self, family: Family, entries: bytes | bytearray, expected: Expected) -> None:
        self._layout = LAYOUTS[family]
        self._entries = entries
        self._expected = expected
        self._reader: EntryReader | None = None
        # Standard targets as `pack` makes them, by the kernel's verdicts: numbers, or offsets of chains' first entries.
        self._standards = {verdict: standard(name) for verdict, name in VERDICTS.items()}

    def holds(self, wanted: Table, info: bytes) -> bool:
        """Whether these are the entries of this table's chains, all of them expected, and no others."""
        _, _, *numbers = INFO.unpack(info)
        firsts, policies = numbers[: len(HOOKS)], numbers[len(HOOKS) :]
        start = 0
        for chain in wanted.chains:
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
        """Where the rules of a user's chain begin whose head is at an offset; None where it is not."""
        target, size = self._offsets(start)
        if not self._entries.startswith(ERROR, start + target + _NAME_AT) or self._error_name(start + target) != name:
            return None
        return start + size

    def _behind(self, start: int, packed: list[bytes | PackedRun]) -> int | None:
        """Where these entries end that begin at an offset; None where others are there."""
        for part in packed:
            if not (self._is(start, part) if isinstance(part, bytes) else self._run_matches(start, part)):
                return None
            start += len(part)
        return start

    def chains(self, info: bytes, left_out: frozenset[str]) -> Iterator[tuple[str, list[Rule] | Chain, str]]:
        """Every chain's name, all that is in it, and the verdict behind that: the policy or, in a user's chain, RETURN.

        Nothing is in those that are left out.
        """
        _, valid, *numbers = INFO.unpack(info)
        starts = {numbers[hook]: name for hook, name in enumerate(HOOKS) if valid & 1 << hook}
        entries, offsets_at = self._entries, self._layout.counters_at - OFFSETS.size
        name, start, last = "", 0, None
        rules: list[Rule] | Chain = []
        known: dict[bytes, Rule] = {}
        while start < len(entries):
            target, end = OFFSETS.unpack_from(entries, start + offsets_at)
            target, end = start + target, start + end
            is_head = entries.startswith(ERROR, target + _NAME_AT)
            if is_head or start in starts:
                if name:
                    yield name, rules, "" if last is None else self._verdict(last)
                name, rules, last = self._error_name(target) if is_head else starts[start], [], None
                if is_head and name not in left_out and (standing := self._standing(name, end)):
                    rules, end = standing
                else:
                    known = self._known(name)
            if isinstance(rules, list) and not (is_head or name in left_out):
                if last is not None:
                    rules.append(self._rule(last, known))
                last = start
            start = end

    def _verdict(self, start: int) -> str:
        """What the entry at an offset says whatever the packet; empty where that is no verdict."""
        target, _ = self._offsets(start)
        (verdict,) = VERDICT.unpack_from(self._entries, start + target + HEAD.size)
        return VERDICTS.get(verdict, "")

    def _known(self, name: str) -> dict[bytes, Rule]:
        """The rules that are expected in a chain, by their entries; long runs are not worth a dictionary."""
        if name not in self._expected:
            return {}
        chain, packed = self._expected[name]
        entries = [entry for entry in packed if isinstance(entry, bytes)]
        return dict(zip(entries, chain.rules, strict=True)) if len(entries) == len(packed) else {}

    def _standing(self, name: str, start: int) -> tuple[Chain, int] | None:
        """A chain that is just as it is expected, and where the return behind its rules ends; or None.

        `start` is where its rules begin.
        """
        if name not in self._expected:
            return None
        chain, packed = self._expected[name]
        end = self._behind(start, packed)
        if end is None:
            return None
        # Nothing but the return may follow before the next chain's head.
        end += self._offsets(end)[1]
        target, _ = self._offsets(end)
        return (chain, end) if self._entries.startswith(ERROR, end + target + _NAME_AT) else None

    def _offsets(self, start: int) -> tuple[int, int]:
        """Of the entry at an offset, its target's and its end's, counted from its start."""
        target, end = OFFSETS.unpack_from(self._entries, start + self._layout.counters_at - OFFSETS.size)
        return target, end

    def _run_matches(self, start: int, run: PackedRun) -> bool:
        """Whether the entries from an offset on are a run's: the first unit is, and the others are spelled like it."""
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
        # What is equal says where target and end are.
        target, end = OFFSETS.unpack_from(packed, layout.counters_at - OFFSETS.size)
        if entries[start + target + _NAME_AT]:
            return entries.startswith(packed[layout.size :], start + layout.size)
        if not entries.startswith(packed[layout.size : target], start + layout.size):
            return False
        return self._standard(start + target, start + end) == packed[target:]

    def _normal(self, start: int) -> tuple[bytes, bool]:
        """The entry at an offset as `pack` makes it, and whether its target is a verdict or a jump."""
        entries, layout = self._entries, self._layout
        target, end = self._offsets(start)
        target, end = start + target, start + end
        packed = None if entries[target + _NAME_AT] else self._standard(target, end)
        element = entries[target:end] if packed is None else packed
        parts = entries[start : start + layout.counters_at], layout.uncounted, entries[start + layout.size : target]
        return b"".join([*parts, element]), packed is not None

    def _rule(self, start: int, known: dict[bytes, Rule]) -> Rule:
        """The rule of the entry at an offset."""
        entry, is_standard = self._normal(start)
        rule = known.get(entry)
        if rule is None:
            if self._reader is None:
                from istio_init.kernel.xtables.decode_rule import EntryReader

                self._reader = EntryReader(self._layout.family)
            rule = self._reader.rule(entry, is_standard=is_standard)
        return rule

    def _standard(self, target: int, end: int) -> bytes | None:
        """A standard target as `pack` makes it; None where it jumps to where no chain begins."""
        (verdict,) = VERDICT.unpack_from(self._entries, target + HEAD.size)
        packed = self._standards.get(verdict)
        if packed is None:
            if verdict == end:
                return standard("")  # falls through to the next rule
            if self._entries.startswith(ERROR, verdict - ERROR_SIZE + _NAME_AT):
                packed = self._standards[verdict] = standard(self._error_name(verdict - ERROR_SIZE))
        return packed

    def _error_name(self, target: int) -> str:
        """The name of the chain whose head has this target."""
        field = self._entries[target + HEAD.size : target + ERROR_SIZE]
        return field.partition(b"\0")[0].decode(errors="surrogateescape")
