"""Intervals of ports and addresses, read from the elements of a dumped set: what set_elements.py makes of them."""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import ATTRIBUTE, attributes
from istio_init.kernel.nft.set_elements import END, FLAGS, IS_END, KEY, USERDATA, VALUE, frame
from istio_init.model.inet import merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.model.inet import Interval


def read_intervals(lists: Iterable[bytes], size: int, *, ranged: bool) -> tuple[Interval, ...]:
    """The intervals of a dumped set, ascending and apart. ValueError for elements that are more than that."""
    data = b"".join(lists)
    intervals = _pairs(data, size) if ranged else _singles(data, size)
    if intervals is None:
        bounds = _bounds(data, size)
        if not ranged and any(end for _, end in bounds):
            raise ValueError("an end of an interval in a set of single values")
        intervals = _from_bounds(bounds, (1 << 8 * size) - 1) if ranged else [(value, value) for value, _ in bounds]
    return merged(intervals)


def read_values(lists: Iterable[bytes], size: int) -> frozenset[bytes]:
    """The values of a dumped set that is no set of intervals. ValueError for elements that are more than a value."""
    bounds = _bounds(b"".join(lists), size)
    if any(end for _, end in bounds):
        raise ValueError("an end of an interval in a set of single values")
    return frozenset([value.to_bytes(size, "big") for value, _ in bounds])


# Long sets are read by their pattern: taking every element apart by itself takes several times as long. None means
# that the elements have another one.


def _singles(data: bytes, size: int) -> list[Interval] | None:
    head, tail = frame(size)
    stride = len(head) + size + len(tail)
    if len(data) % stride:
        return None
    values = []
    for first, value, last in Struct(f"{len(head)}s{size}s{len(tail)}s").iter_unpack(data):
        if first != head or last != tail:
            return None
        values.append(int.from_bytes(value, "big"))
    return [(value, value) for value in sorted(values)]


def _pairs(data: bytes, size: int) -> list[Interval] | None:
    """Intervals that are dumped descending, the end of each before its beginning, as the kernel's trees do."""
    (head, tail), (end_head, end_tail) = frame(size), frame(size, END)
    stride = 2 * size + len(head + tail + end_head + end_tail)
    rest = len(data) % stride
    if data[len(data) - rest :] not in {b"", end_head + bytes(size) + end_tail}:
        return None
    cut = Struct(f"{len(end_head)}s{size}s{len(end_tail + head)}s{size}s{len(tail)}s")
    between = end_tail + head
    intervals = []
    above = 1 << 8 * size
    for first, end, middle, begin, last in cut.iter_unpack(data[: len(data) - rest]):
        low, high = int.from_bytes(begin, "big"), int.from_bytes(end, "big")
        # Not in this order, an end does not belong to the beginning that follows it.
        if first != end_head or middle != between or last != tail or not low < high <= above:
            return None
        intervals.append((low, high - 1))
        above = low
    intervals.reverse()
    return intervals


def _bounds(data: bytes, size: int) -> list[tuple[int, bool]]:
    """Each element's value, and whether it is the end of an interval."""
    bounds = []
    for element in members(data):
        facts = attributes(element)
        flags = facts.pop(FLAGS, bytes(4))
        facts.pop(USERDATA, None)  # notes, such as comments
        value = attributes(facts.pop(KEY, b"")).get(VALUE, b"")
        if facts or flags not in {bytes(4), IS_END} or len(value) != size:
            raise ValueError("an element that is more than a value")
        bounds.append((int.from_bytes(value, "big"), flags == IS_END))
    return bounds


def _from_bounds(bounds: list[tuple[int, bool]], last: int) -> list[Interval]:
    """Intervals from their beginnings and ends, in any order."""
    intervals: list[Interval] = []
    low = -1
    # If one interval begins where another ends, the end comes first.
    for value, end in sorted(bounds, key=lambda bound: (bound[0], not bound[1])):
        if not end:
            if low >= 0:
                raise ValueError("an interval within another")
            low = value
        elif low >= 0:
            intervals.append((low, value - 1))
            low = -1
        elif value:
            raise ValueError("an end without a beginning")
    return [*intervals, (low, last)] if low >= 0 else intervals


def members(data: bytes) -> Iterator[bytes]:
    """The attributes of a list that are all of one kind, without their heads. ValueError if the list is cut short."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length = ATTRIBUTE.unpack_from(data, at)[0]
        if length < ATTRIBUTE.size or at + length > len(data):
            raise ValueError("a list that is cut short")
        yield data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
