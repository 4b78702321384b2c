"""Elements of nftables' sets as netlink attributes: intervals of ports and addresses.

A set with the flag NFT_SET_INTERVAL has an element where an interval begins and one, marked as an end, behind its last
value; nft also marks 0 as an end if no interval begins there. A set without the flag has an element for each value.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import ATTRIBUTE, attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """The elements of a set of intervals, descending, as the kernel dumps them: in lists that an attribute can hold.

    `intervals` are ascending and apart; `size` is that of a value in bytes.
    """
    (head, tail), (end_head, end_tail) = frame(size), frame(size, END)
    lowest, last = intervals[0][0], (1 << 8 * size) - 1
    before = b""
    if intervals[-1][1] == last:
        # Nothing is behind the last value of all.
        open_head, open_tail = frame(size, _OPEN)
        before = open_head + intervals[-1][0].to_bytes(size, "big") + open_tail
        intervals = intervals[:-1]
    between = end_tail + head
    if size in _NUMBERS:
        number = _NUMBERS[size]
        pack = Struct(f">{len(end_head)}s{number}{len(between)}s{number}{len(tail)}s").pack
        pairs = [pack(end_head, high + 1, between, low, tail) for low, high in reversed(intervals)]
    else:
        pairs = [
            end_head + (high + 1).to_bytes(size, "big") + between + low.to_bytes(size, "big") + tail
            for low, high in reversed(intervals)
        ]
    if lowest:
        pairs.append(end_head + bytes(size) + end_tail)
    at_once = (_LONGEST_LIST - len(before)) // (2 * size + len(end_head + between + tail))
    lists = [b"".join(pairs[first : first + at_once]) for first in range(0, len(pairs), at_once)] or [b""]
    return (before + lists[0], *lists[1:])


def single_elements(intervals: Sequence[Interval], size: int) -> tuple[bytes, ...]:
    """The same for a set of single values, ascending: the kernel dumps them in an order of its own."""
    head, tail = frame(size)
    elements = [head + low.to_bytes(size, "big") + tail for low, _ in intervals]
    at_once = _LONGEST_LIST // (size + len(head + tail))
    return tuple([b"".join(elements[first : first + at_once]) for first in range(0, len(elements), at_once)])


def count_ranged(intervals: Sequence[Interval]) -> int:
    """The number of elements of a set of intervals, as nft counts them: an end for each, and one at 0."""
    return 2 * len(intervals) + (intervals[0][0] != 0)


def frame(size: int, flags: bytes = b"") -> tuple[bytes, bytes]:
    """An element's attributes before and after the value, as the kernel dumps them."""
    element = attribute(1, attribute(KEY, attribute(VALUE, bytes(size))) + flags)
    return element[:_HEAD], element[_HEAD + size :]
