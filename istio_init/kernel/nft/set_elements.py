"""Elements of nftables' sets as netlink attributes, and back: intervals of ports and addresses.

A set with the flag NFT_SET_INTERVAL has an element where an interval begins and one, marked as an end, behind its last
value; nft also marks 0 as an end if no interval begins there. A set without the flag has an element for each value.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct
from itertools import pairwise

from istio_init.kernel.netlink.channel import ATTRIBUTE, attribute, attributes
from istio_init.model.inet import merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_init.model.inet import Interval

# By element type: nft's number of the type, and the size of an element in bytes.
ELEMENT_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_service": (13, 2)}

_KEY, _FLAGS, _USERDATA = 1, 3, 6  # NFTA_SET_ELEM_*
_VALUE = 1  # NFTA_DATA_VALUE
_IS_END = b"\0\0\0\1"  # NFT_SET_ELEM_INTERVAL_END
_END = attribute(_FLAGS, _IS_END)
# What nft notes on an interval without an end: NFTNL_UDATA_SET_ELEM_FLAGS, of which 1 is SET_ELEM_F_INTERVAL_OPEN.
_OPEN = attribute(_USERDATA, bytes((1, 4)) + Struct("=I").pack(1))
# A list of elements is one attribute, whose length has 16 bits.
_LONGEST_LIST = 0xFFFF - ATTRIBUTE.size
_HEAD = 3 * ATTRIBUTE.size  # of an element, its key, and the key's value


def ranged_elements(intervals: Sequence[Interval], size: int) -> tuple[tuple[bytes, ...], int]:
    """The elements of a set of intervals, in lists that one attribute can hold, and their number as nft counts it.

    `intervals` are ascending and apart; `size` is that of a value in bytes.
    """
    (head, tail), (end_head, end_tail) = _frame(size), _frame(size, _END)
    between, last = tail + end_head, (1 << 8 * size) - 1
    elements = [
        head + low.to_bytes(size, "big") + between + (high + 1).to_bytes(size, "big") + end_tail
        for low, high in intervals
        if high < last
    ]
    if intervals[0][0]:
        elements.insert(0, end_head + bytes(size) + end_tail)
    if intervals[-1][1] == last:
        # Nothing is behind the last value of all.
        open_head, open_tail = _frame(size, _OPEN)
        elements.append(open_head + intervals[-1][0].to_bytes(size, "big") + open_tail)
    count = 2 * len(intervals) + bool(intervals[0][0])
    return _lists(elements, len(head + between + end_tail) + 2 * size), count


def single_elements(intervals: Sequence[Interval], size: int) -> tuple[tuple[bytes, ...], int]:
    """The same for a set of single values."""
    head, tail = _frame(size)
    elements = [head + low.to_bytes(size, "big") + tail for low, _ in intervals]
    return _lists(elements, len(head + tail) + size), len(elements)


def _frame(size: int, flags: bytes = b"") -> tuple[bytes, bytes]:
    """An element's attributes before and after the value, as the kernel dumps them."""
    element = attribute(1, attribute(_KEY, attribute(_VALUE, bytes(size))) + flags)
    return element[:_HEAD], element[_HEAD + size :]


def _lists(elements: list[bytes], longest: int) -> tuple[bytes, ...]:
    at_once = _LONGEST_LIST // longest
    return tuple([b"".join(elements[first : first + at_once]) for first in range(0, len(elements), at_once)])


def read_intervals(lists: Iterable[bytes], size: int, *, ranged: bool) -> tuple[Interval, ...]:
    """The intervals of a dumped set, ascending and apart. ValueError for elements that are more than that."""
    data = b"".join(lists)
    found = _pairs(data, size) if ranged else _singles(data, size)
    if found is None:
        bounds = _bounds(data, size)
        if not ranged and any(end for _, end in bounds):
            raise ValueError("an end of an interval in a set of single values")
        found = _from_bounds(bounds, (1 << 8 * size) - 1) if ranged else [(value, value) for value, _ in bounds]
    apart = all(one[1] + 1 < other[0] for one, other in pairwise(found))
    return tuple(found) if apart else merged(found)


# Long sets are read by their pattern: taking every element apart by itself takes several times as long. None means
# that the elements have another one.


def _singles(data: bytes, size: int) -> list[Interval] | None:
    head, tail = _frame(size)
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
    (head, tail), (end_head, end_tail) = _frame(size), _frame(size, _END)
    stride = 2 * size + len(head + tail + end_head + end_tail)
    rest = len(data) % stride
    if data[len(data) - rest :] not in {b"", end_head + bytes(size) + end_tail}:
        return None
    cut = Struct(f"{len(end_head)}s{size}s{len(end_tail + head)}s{size}s{len(tail)}s")
    between = end_tail + head
    found = []
    for first, high, middle, low, last in cut.iter_unpack(data[: len(data) - rest]):
        if first != end_head or middle != between or last != tail:
            return None
        found.append((int.from_bytes(low, "big"), int.from_bytes(high, "big") - 1))
    found.reverse()
    return found


def _bounds(data: bytes, size: int) -> list[tuple[int, bool]]:
    """Each element's value, and whether it is the end of an interval."""
    found = []
    for element in members(data):
        facts = attributes(element)
        flags = facts.pop(_FLAGS, bytes(4))
        facts.pop(_USERDATA, None)  # notes, such as comments
        value = attributes(facts.pop(_KEY, b"")).get(_VALUE, b"")
        if facts or flags not in {bytes(4), _IS_END} or len(value) != size:
            raise ValueError("an element that is more than a value")
        found.append((int.from_bytes(value, "big"), flags == _IS_END))
    return found


def _from_bounds(bounds: list[tuple[int, bool]], last: int) -> list[Interval]:
    """Intervals from their beginnings and ends, in any order."""
    found: list[Interval] = []
    low = -1
    # If one interval begins where another ends, the end comes first.
    for value, end in sorted(bounds, key=lambda bound: (bound[0], not bound[1])):
        if not end:
            if low >= 0:
                raise ValueError("an interval within another")
            low = value
        elif low >= 0:
            found.append((low, value - 1))
            low = -1
        elif value:
            raise ValueError("an end without a beginning")
    return [*found, (low, last)] if low >= 0 else found


def members(data: bytes) -> Iterator[bytes]:
    """The attributes of a list that are all of one kind, without their heads. ValueError if the list is cut short."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length = ATTRIBUTE.unpack_from(data, at)[0]
        if length < ATTRIBUTE.size or at + length > len(data):
            raise ValueError("a list that is cut short")
        yield data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
