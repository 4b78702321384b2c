"""The entries of a Run: one unit of bytes, repeated, with each value's bytes written over it.

The rules of a run differ in their destination or in their destination ports only, which are at the same place in each
entry. Packing 10,000 of them rule by rule would take ten times as long as everything else that a run does.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only re-exports it

from istio_init.kernel.xtables.encode_ports import PORTS_AT
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.ip_header import LAYOUTS, netmask
from istio_init.model.rules import Network, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TypeAlias

    from istio_init.kernel.xtables.ip_header import EntryLayout
    from istio_init.model.rules import Family, PortRange

    # Offset in an entry, number of bytes there, and these bytes of all values.
    Column: TypeAlias = tuple[int, int, bytes]

# Units that are made at once: their entries stay in the processor's cache, in memory that is used again for the next.
# The kernel hands out new memory page by page, which would take longer than all the rest.
_BLOCK = 500


class PackedRun:
    """The entries of a Run, each as `pack` makes it. KernelError as `pack`; ValueError where the values do not fit.

    `unit` has the entries of the first value, `sizes` the bytes of each of them, `count` is the number of values.
    """

    def __init__(self, run: Run, family: Family) -> None:
        self._layout = LAYOUTS[family]
        entries = [pack(rule, family) for rule in run.unit]
        self.unit = b"".join(entries)
        self.sizes = tuple(map(len, entries))
        self.count = len(run.values)
        self._columns = tuple(_columns(run.values, self._layout))
        last = b"".join([pack(rule, family) for rule in Run(run.unit, run.values[-1:]).rules()])
        ends = [(at, width, values[-width:]) for at, width, values in self._columns]
        if self._repeated(self.unit, 1, ends) != last:
            raise ValueError("a value is not at the expected place of an entry")

    def __len__(self) -> int:
        return len(self.unit) * self.count

    def entries(self) -> Iterator[bytes]:
        """All entries, one by one."""
        for block in self.blocks(self.unit):
            start = 0
            for size in self.sizes * (len(block) // len(self.unit)):
                yield bytes(block[start : start + size])
                start += size

    def blocks(self, unit: bytes | bytearray) -> Iterator[bytearray]:
        """All entries in pieces, made of a `unit` whose verdicts and jumps may be as the kernel has them."""
        for first in range(0, self.count, _BLOCK):
            last = min(first + _BLOCK, self.count)
            columns = ((at, width, values[first * width : last * width]) for at, width, values in self._columns)
            yield self._repeated(unit, last - first, columns)

    def matches(self, existing: bytes | bytearray, start: int) -> bool:
        """Whether the kernel's entries from an offset on are those of this run; the first unit is known to be equal.

        Counters do not count. Every unit must have the verdict, or the offset of a jump, that the first unit has.
        """
        width = len(self._layout.uncounted)
        unit = bytearray(existing[start : start + len(self.unit)])
        self._clear_counters(unit, width)
        for block in self.blocks(unit):
            part = bytearray(existing[start : start + len(block)])
            self._clear_counters(part, width)
            if part != block:
                return False
            start += len(block)
        return True

    def _clear_counters(self, entries: bytearray, width: int) -> None:
        zeros = bytes(width * (len(entries) // len(self.unit)))
        _overwrite(entries, len(self.unit), self.sizes, (self._layout.counters_at, width, zeros))

    def _repeated(self, unit: bytes | bytearray, count: int, columns: Iterable[Column]) -> bytearray:
        content = bytearray(unit) * count
        for column in columns:
            _overwrite(content, len(unit), self.sizes, column)
        return content


def _overwrite(entries: bytearray, step: int, sizes: tuple[int, ...], column: Column) -> None:
    """Write a column's bytes into the entries, which are units of `step` bytes with entries of these `sizes`.

    Done in words of four bytes, which is what all offsets and lengths are multiples of.
    """
    at, width, values = column
    source, target = memoryview(values).cast("I"), memoryview(entries).cast("I")
    for size in sizes:
        for number in range(width // 4):
            target[at // 4 + number :: step // 4] = source[number :: width // 4]
        at += size


def _columns(values: tuple[Network, ...] | tuple[PortRange, ...], layout: EntryLayout) -> Iterator[Column]:
    """The bytes in which the entries of these values differ."""
    # All values are of one kind; to check each of 10,000 would be noticeable.
    each: Any = values
    if not isinstance(values[0], Network):
        ports = [number for value in each for number in (value.low, value.high)]
        yield layout.size + PORTS_AT, 4, Struct(f"={len(ports)}H").pack(*ports)
        return
    width = len(layout.any_address)
    addresses = b"".join([network.address for network in each])
    if len(addresses) != width * len(values):
        raise ValueError(f"networks that are not all of {layout.family}")
    prefixes = [network.prefix for network in each]
    masks = {prefix: netmask(prefix, width) for prefix in set(prefixes)}
    # An entry begins with source, destination, and the masks of both.
    yield width, width, addresses
    yield 3 * width, width, b"".join(map(masks.__getitem__, prefixes))
