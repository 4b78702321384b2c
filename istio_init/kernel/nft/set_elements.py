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


def ranged_elements(intervals: Sequence[Interval], size: int) -> tuple[bytes, ...]:
    """The elements of a set of intervals, ascending, in lists that an attribute can hold.

    `intervals` are ascending and apart; `size` is that of a value in bytes. The kernel takes ascending elements faster
    than descending ones: to find out whether one overlaps others, it begins with the highest one that it has.
    """
    (head, tail), (end_head, end_tail) = frame(size), frame(size, END)
    pairs = _pairs(intervals, size, (head, tail + end_head, end_tail))
    behind = b""
    if intervals[-1][1] == _last(size):
        # Nothing is behind the last value of all.
        open_head, open_tail = frame(size, _OPEN)
        behind = open_head + intervals[-1][0].to_bytes(size, "big") + open_tail
        pairs.pop()
    first = end_head + bytes(size) + end_tail if intervals[0][0] else b""
    at_once = (_LONGEST_LIST - len(first + behind)) // (2 * size + len(head + tail + end_head + end_tail))
    lists = [b"".join(pairs[at : at + at_once]) for at in range(0, len(pairs), at_once)] or [b""]
    lists[0] = first + lists[0]
    lists[-1] += behind
    return tuple(lists)


def dumped_ranges(intervals: Sequence[Interval], size: int) -> bytes:
    """The same elements as the kernel dumps them: descending, one behind the other."""
    (head, tail), (end_head, end_tail) = frame(size), frame(size, END)
    pairs = _pairs(intervals, size, (end_head, end_tail + head, tail), ends_first=True)
    if intervals[-1][1] == _last(size):
        open_head, open_tail = frame(size, _OPEN)
        pairs[-1] = open_head + intervals[-1][0].to_bytes(size, "big") + open_tail
    pairs.reverse()
    if intervals[0][0]:
        pairs.append(end_head + bytes(size) + end_tail)
    return b"".join(pairs)


def _last(size: int) -> int:
    return (1 << 8 * size) - 1


def _pairs(
    intervals: Sequence[Interval], size: int, frames: tuple[bytes, bytes, bytes], *, ends_first: bool = False
) -> list[bytes]:
    """For each interval two elements, where it begins and behind its last value, with what is around the values.

    What is behind the last value of all is 0, which the caller replaces.
    """
    before, between, behind = frames
    last = _last(size)
    if size not in _NUMBERS:
        values = [(low.to_bytes(size, "big"), (high + 1 & last).to_bytes(size, "big")) for low, high in intervals]
        if ends_first:
            return [before + end + between + low + behind for low, end in values]
        return [before + low + between + end + behind for low, end in values]
    number = _NUMBERS[size]
    pack = Struct(f">{len(before)}s{number}{len(between)}s{number}{len(behind)}s").pack
    if ends_first:
        return [pack(before, high + 1 & last, between, low, behind) for low, high in intervals]
    return [pack(before, low, between, high + 1 & last, behind) for low, high in intervals]


def single_elements(values: Iterable[bytes], size: int) -> tuple[bytes, ...]:
    """The same for a set of single values, which are packed: the kernel dumps them in an order of its own."""
    head, tail = frame(size)
    packed = list(values)
    at_once = _LONGEST_LIST // (size + len(head + tail))
    lists = [packed[at : at + at_once] for at in range(0, len(packed), at_once)]
    return tuple([head + (tail + head).join(each) + tail for each in lists])


def are_elements(lists: Sequence[bytes], values: Collection[bytes], size: int) -> bool:
    """Whether lists have an element for each of these values, in any order. A set has no element twice."""
    head, tail = frame(size)
    if sum(map(len, lists)) != len(values) * (size + len(head + tail)):
        return False
    padded = frozenset([each + tail for each in values] if tail else values)
    # Whatever the head occurs in is not as it should be, and so not among the values.
    parts = [each.split(head) for each in lists]
    return not any(each[0] for each in parts) and all(padded.issuperset(each[1:]) for each in parts)


def count_ranged(intervals: Sequence[Interval]) -> int:
    """The number of elements of a set of intervals, as nft counts them: an end for each, and one at 0."""
    return 2 * len(intervals) + (intervals[0][0] != 0)


def frame(size: int, flags: bytes = b"") -> tuple[bytes, bytes]:
    """An element's attributes before and after the value, as the kernel dumps them."""
    element = attribute(1, attribute(KEY, attribute(VALUE, bytes(size))) + flags)
    return element[:_HEAD], element[_HEAD + size :]
