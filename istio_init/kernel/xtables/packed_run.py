"""Many alike rules at once: the entries of a Run, made and compared as one stretch of bytes.

The entries of a run differ in some columns alone, those of a network's address and mask or of the ports. So they are
one unit over and over, with the columns' bytes put in by strides; and whether they stand in a table is one comparison.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.kernel.xtables.encode_ports import PORTS_AT
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.model.rules import Network, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal, TypeAlias

    from istio_init.kernel.xtables.ip_header import Layout
    from istio_init.model.rules import Family, PortRange

    # Where in each entry its bytes are, how many, and all entries' one behind the other.
    Column: TypeAlias = tuple[int, int, bytes]
    # What is repeated in a buffer: where it begins, and after how many bytes the next one does.
    Strided: TypeAlias = tuple[bytes | bytearray | memoryview, int, int]

# How many units are compared at once: as many as stay in the processor's cache, in memory that is used again.
_BLOCK = 500

# Sizes that memory can be copied in, and memoryview's names for them.
_ITEMS: tuple[tuple[int, Literal["Q", "I", "H", "B"]], ...] = ((8, "Q"), (4, "I"), (2, "H"), (1, "B"))


class PackedRun:
    """The entries of a Run, each as `pack` makes it; KernelError as `pack`, ValueError where they differ in more.

    `unit` is the first value's entries, `sizes` has the bytes of each of them, `count` says how many values there are.
    """

    def __init__(self, run: Run, family: Family) -> None:
        self._layout = LAYOUTS[family]
        entries = [pack(rule, family) for rule in run.unit]
        self.unit = b"".join(entries)
        self.sizes = tuple(map(len, entries))
        self.count = len(run.values)
        self._columns = tuple(_columns(run.values, self._layout))
        last = b"".join([pack(rule, family) for rule in Run(run.unit, run.values[-1:]).rules()])
        ends = [(place, width, content[-width:]) for place, width, content in self._columns]
        if self._filled(self.unit, 1, ends) != last:
            raise ValueError("a run whose value is not where it is expected in an entry")

    def __len__(self) -> int:
        return len(self.unit) * self.count

    def _starts(self) -> Iterator[int]:
        """Where the unit's entries begin."""
        start = 0
        for size in self.sizes:
            yield start
            start += size

    def filled(self) -> bytearray:
        """All entries."""
        return self._filled(self.unit, self.count, self._columns)

    def _filled(self, unit: bytes | memoryview, count: int, columns: Iterable[Column]) -> bytearray:
        entries = bytearray(unit) * count
        self._differ(entries, len(unit), columns)
        return entries

    def fill(self, place: memoryview, unit: bytes) -> None:
        """All entries put where they are wanted, in as many bytes, made of a unit that is spelled in another way.

        No memory is touched but that.
        """
        done = len(unit)
        place[:done] = unit
        while done < len(place):
            more = min(done, len(place) - done)
            place[done : done + more] = place[:more]
            done += more
        self._differ(place, len(unit), self._columns)

    def _differ(self, entries: bytearray | memoryview, step: int, columns: Iterable[Column]) -> None:
        for start in self._starts():
            for place, width, content in columns:
                _copy(width, (content, 0, width), (entries, start + place, step))

    def stands(self, standing: memoryview) -> bool:
        """Whether entries that stand are all spelled as the first unit of them is, counters and `comefrom` aside."""
        step, width = len(self.unit), len(self._layout.uncounted)
        unit = standing[:step]
        for first in range(0, self.count, _BLOCK):
            last = min(first + _BLOCK, self.count)
            part = standing[first * step : last * step]
            columns = [(at, size, content[first * size : last * size]) for at, size, content in self._columns]
            entries = self._filled(unit, last - first, columns)
            for start in self._starts():
                place = start + self._layout.counters_at
                _copy(width, (part, place, step), (entries, place, step))
            if entries != part:
                return False
        return True


def _copy(width: int, source: Strided, target: Strided) -> None:
    """Copy `width` bytes, as often as there are such in the source."""
    (content, first, every), (entries, at, step) = source, target
    # Each stretch of 1, 2, 4 or 8 bytes is one pass over all entries: the fewer, the better.
    numbers = width, first, every, at, step
    item, code = next(each for each in _ITEMS if not any(number % each[0] for number in numbers))
    out_of, into = memoryview(content).cast(code), memoryview(entries).cast(code)
    for number in range(width // item):
        into[at // item + number :: step // item] = out_of[first // item + number :: every // item]


def _columns(values: tuple[Network, ...] | tuple[PortRange, ...], layout: Layout) -> Iterator[Column]:
    """What differs between the entries of these values."""
    # They are all of one kind; asking 10,000 for theirs would show.
    each: Any = values
    if not isinstance(values[0], Network):
        ports = [number for value in each for number in (value.low, value.high)]
        yield layout.size + PORTS_AT, 4, Struct(f"={len(ports)}H").pack(*ports)
        return
    width = len(layout.any_address)
    if hasattr(each, "addresses"):  # a long list's, in columns
        addresses, prefixes = each.addresses, each.prefixes
    else:
        addresses, prefixes = b"".join([network.address for network in each]), [network.prefix for network in each]
    if len(addresses) != width * len(values):
        raise ValueError(f"networks that are not all of {layout.family}")
    # Source, destination, their masks.
    yield width, width, addresses
    if len(set(prefixes)) > 1:
        bits = width * 8
        masks = {prefix: ((1 << bits) - (1 << (bits - prefix))).to_bytes(width, "big") for prefix in set(prefixes)}
        yield 3 * width, width, b"".join(map(masks.__getitem__, prefixes))
