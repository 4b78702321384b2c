"""Every chain and rule out of the kernel's answer, where a table is not just what was expected (decode_table.py)."""

from __future__ import annotations

from istio_init.kernel.xtables.decode_table import NAME_AT, TableBlob
from istio_init.kernel.xtables.encode_rule import ERROR, HOOKS, INFO, OFFSETS
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS, Chain, Table, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.decode_rule import EntryReader
    from istio_init.kernel.xtables.decode_table import Expected
    from istio_init.model.rules import Family, Rule, TableName


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
    reader = _ChainReader(family, entries, expected or {})
    chains = {}
    for chain, rules, policy in reader.chains(info, frozenset() if own else OWN_CHAINS):
        if isinstance(rules, Chain):
            chains[chain] = rules
        else:
            chains[chain] = Chain(chain, tuple(rules), policy if chain in BUILTIN_CHAINS[name] else None)
    return Table(name, ordered(name, chains))


class _ChainReader(TableBlob):
    """Reads all entries of a table."""

    _reader: EntryReader | None = None

    def chains(self, info: bytes, left_out: frozenset[str]) -> Iterator[tuple[str, list[Rule] | Chain, str]]:
        """Every chain's name, all that is in it, and the verdict behind that: the policy or, in a user's chain, RETURN.

        Nothing is in those that are left out.
        """
        _, valid, *numbers = INFO.unpack(info)
        starts = {numbers[hook]: name for hook, name in enumerate(HOOKS) if valid & 1 << hook}
        entries, offsets_at = self._entries, self._layout.counters_at - OFFSETS.size
        name, start, last = "", 0, None
        rules: list[Rule] | Chain = []
        decoded: dict[bytes, Rule] = {}
        while start < len(entries):
            target, end = OFFSETS.unpack_from(entries, start + offsets_at)
            target, end = start + target, start + end
            is_head = entries.startswith(ERROR, target + NAME_AT)
            if is_head or start in starts:
                if name:
                    yield name, rules, "" if last is None else self._verdict(last)
                name, rules, last = self._error_name(target) if is_head else starts[start], [], None
                if is_head and name not in left_out and (unchanged := self._unchanged(name, end)):
                    rules, end = unchanged
                else:
                    decoded = self._expected_rules(name)
            if isinstance(rules, list) and not (is_head or name in left_out):
                if last is not None:
                    rules.append(self._rule(last, decoded))
                last = start
            start = end

    def _expected_rules(self, name: str) -> dict[bytes, Rule]:
        """The rules that are expected in a chain, by their entries; long runs are not worth a dictionary."""
        if name not in self._expected:
            return {}
        chain, packed = self._expected[name]
        entries = [entry for entry in packed if isinstance(entry, bytes)]
        return dict(zip(entries, chain.rules, strict=True)) if len(entries) == len(packed) else {}

    def _unchanged(self, name: str, start: int) -> tuple[Chain, int] | None:
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
        return (chain, end) if self._entries.startswith(ERROR, end + target + NAME_AT) else None

    def _normal(self, start: int) -> tuple[bytes, bool]:
        """The entry at an offset as `pack` makes it, and whether its target is a verdict or a jump."""
        entries, layout = self._entries, self._layout
        target, end = self._offsets(start)
        target, end = start + target, start + end
        packed = None if entries[target + NAME_AT] else self._standard(target, end)
        element = entries[target:end] if packed is None else packed
        parts = entries[start : start + layout.counters_at], layout.uncounted, entries[start + layout.size : target]
        return b"".join([*parts, element]), packed is not None

    def _rule(self, start: int, decoded: dict[bytes, Rule]) -> Rule:
        """The rule of the entry at an offset."""
        entry, is_standard = self._normal(start)
        rule = decoded.get(entry)
        if rule is None:
            if self._reader is None:
                from istio_init.kernel.xtables.decode_rule import EntryReader

                self._reader = EntryReader(self._layout.family)
            rule = self._reader.rule(entry, is_standard=is_standard)
        return rule
