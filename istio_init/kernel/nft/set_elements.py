"""Elements of nftables' sets as netlink attributes: intervals of ports and addresses.

A set with the flag NFT_SET_INTERVAL has an element where an interval begins and one, marked as an end, behind its last
value; nft also marks 0 as an end if no interval begins there. A set without the flag has an element for each value.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import ATTRIBUTE, attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from istio_init.model.inet import Interval

# By element type: nft's number of the type, and the size of an element in bytes.
ELEMENT_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_service": (13, 2)}

KEY, FLAGS, USERDATA = 1, 3, 6  # NFTA_SET_ELEM_*
VALUE = 1  # NFTA_DATA_VALUE
IS_END = b"\0\0\0\1"  # NFT_SET_ELEM_INTERVAL_END
END = attribute(FLAGS, IS_END)
# What nft notes on an interval without an end: NFTNL_UDATA_SET_ELEM_FLAGS, of which 1 is SET_ELEM_F_INTERVAL_OPEN.
_OPEN = attribute(USERDATA, bytes((1, 4)) + Struct("=I").pack(1))
# A list of elements is one attribute, whose length has 16 bits.
_LONGEST_LIST = 0xFFFF - ATTRIBUTE.size
_HEAD = 3 * ATTRIBUTE.size  # of an element, its key, and the key's value
_NUMBERS = {2: "H", 4: "I"}
_BLOCK = 100  # values that are unpacked at once


def ranged_elements(intervals: Sequence[Interval], size: int) -> tuple[bytes, ...]:
    """The elements of a set of intervals, ascending, in lists that an attribute can hold.

    `intervals` are ascending and apart; `size` is that of a value in bytes. The kernel takes ascending elements faster
    than descending ones: to find out whether one overlaps others, it begins with the highest one that it has.
    """
    begin, end = frame(size), frame(size, END)
    closed, behind = _without_open(intervals, size)
    pairs = bytes(_pairs(closed, size, begin, end))
    step = len(b"".join(begin + end)) + 2 * size
    first = bytes(size).join(end) if intervals[0][0] else b""
    at_once = (_LONGEST_LIST - len(first + behind)) // step * step
    lists = [pairs[at : at + at_once] for at in range(0, len(pairs), at_once)] or [b""]
    lists[0] = first + lists[0]
    lists[-1] += behind
    return tuple(lists)


def dumped_ranges(intervals: Sequence[Interval], size: int) -> bytes:
    """The same elements as the kernel dumps them: descending, one behind the other."""
    begin, end = frame(size), frame(size, END)
    closed, behind = _without_open(intervals, size)
    pairs = _pairs(closed, size, begin, end, descending=True)
    return behind + pairs + (bytes(size).join(end) if intervals[0][0] else b"")


def _without_open(intervals: Sequence[Interval], size: int) -> tuple[Sequence[Interval], bytes]:
    """The intervals that end before the last value of all, and the element of one that does not: it has no end."""
    low, high = intervals[-1]
    if high + 1 != 1 << 8 * size:
        return intervals, b""
    return intervals[:-1], low.to_bytes(size, "big").join(frame(size, _OPEN))


def _pairs(
    intervals: Sequence[Interval],
    size: int,
    begin: tuple[bytes, bytes],
    end: tuple[bytes, bytes],
    *,
    descending: bool = False,
) -> bytearray:
    """For each interval two elements, where it begins and behind its last value, with what is around the values.

    There may be 10,000: one pair of elements is repeated, and the values are written over it.
    """
    if not intervals:
        return bytearray()
    firsts, lasts = zip(*intervals, strict=True)
    lows, ends = [*firsts], [last + 1 for last in lasts]
    elements = [(begin, lows), (end, ends)]
    if descending:
        lows.reverse()
        ends.reverse()
        elements.reverse()
    return _written_over([(around, _packed(values, size)) for around, values in elements], size, len(intervals))


def _written_over(columns: Sequence[tuple[tuple[bytes, bytes], bytes | bytearray]], size: int, count: int) -> bytearray:
    """So many units, each with an element of each column: what is around a value, and the values of all units."""
    unit = b"".join([bytes(size).join(around) for around, _ in columns])
    content = bytearray(unit) * count
    width = 2 if size % 4 else 4
    target = _words(content, size)
    at = 0
    for (before, behind), values in columns:
        at += len(before)
        source = _words(values, size)
        for number in range(size // width):
            target[at // width + number :: len(unit) // width] = source[number :: size // width]
        at += size + len(behind)
    return content


def _words(data: bytes | bytearray, size: int) -> memoryview[int]:
    """Bytes as words of two or four, of which the size of a value, and of all that is around it, is a multiple."""
    return memoryview(data).cast("H" if size % 4 else "I")


def _packed(values: Sequence[int], size: int) -> bytes:
    if size in _NUMBERS:
        return Struct(f">{len(values)}{_NUMBERS[size]}").pack(*values)
    return b"".join([value.to_bytes(size, "big") for value in values])


def single_elements(values: Iterable[bytes], size: int) -> tuple[bytes, ...]:
    """The same for a set of single values, which are packed: the kernel dumps them in an order of its own."""
    head, tail = frame(size)
    packed = list(values)
    at_once = _LONGEST_LIST // (size + len(head + tail))
    lists = [packed[at : at + at_once] for at in range(0, len(packed), at_once)]
    return tuple([head + (tail + head).join(each) + tail for each in lists])


def are_elements(lists: Sequence[bytes], values: Collection[bytes], size: int) -> bool:
    """Whether lists have an element for each of these values, in any order. A set has no element twice."""
    around = frame(size)
    data = b"".join(lists)
    if len(data) != len(values) * (size + len(b"".join(around))):
        return False
    if not values:
        return True
    width = 2 if size % 4 else 4
    # The values without what is around them, which is then compared by itself.
    packed = bytearray(size * len(values))
    step, begin = len(data) // len(values) // width, len(around[0]) // width
    source, target = _words(data, size), _words(packed, size)
    for number in range(size // width):
        target[number :: size // width] = source[begin + number :: step]
    if data != _written_over([(around, packed)], size, len(values)):
        return False
    planned = frozenset(values)
    at_once = min(len(values), _BLOCK)
    whole = len(values) // at_once * at_once * size
    blocks = [*Struct(f"{size}s" * at_once).iter_unpack(packed[:whole])]
    blocks += Struct(f"{size}s").iter_unpack(packed[whole:])
    return all(map(planned.issuperset, blocks))


def count_ranged(intervals: Sequence[Interval]) -> int:
    """The number of elements of a set of intervals, as nft counts them: an end for each, and one at 0."""
    return 2 * len(intervals) + (intervals[0][0] != 0)


def frame(size: int, flags: bytes = b"") -> tuple[bytes, bytes]:
    """An element's attributes before and after the value, as the kernel dumps them."""
    element = attribute(1, attribute(KEY, attribute(VALUE, bytes(size))) + flags)
    return element[:_HEAD], element[_HEAD + size :]
