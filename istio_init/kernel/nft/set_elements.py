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


def ranged_elements(intervals: Sequence[Interval], size: int) -> tuple[list[bytes], int]:
    """The elements of a set of intervals, ascending, and their number as nft counts it.

    `intervals` are ascending and apart; `size` is that of a value in bytes.
    """
    (head, tail), (end_head, end_tail) = frame(size), frame(size, END)
    last = (1 << 8 * size) - 1
    elements: list[bytes] = []
    for low, high in intervals:
        if high < last:
            elements += (
                head + low.to_bytes(size, "big") + tail,
                end_head + (high + 1).to_bytes(size, "big") + end_tail,
            )
    if intervals[0][0]:
        elements.insert(0, end_head + bytes(size) + end_tail)
    if intervals[-1][1] == last:
        # Nothing is behind the last value of all.
        open_head, open_tail = frame(size, _OPEN)
        elements.append(open_head + intervals[-1][0].to_bytes(size, "big") + open_tail)
    count = 2 * len(intervals) + bool(intervals[0][0])
    return elements, count


def single_elements(intervals: Sequence[Interval], size: int) -> tuple[list[bytes], int]:
    """The same for a set of single values."""
    head, tail = frame(size)
    return [head + low.to_bytes(size, "big") + tail for low, _ in intervals], len(intervals)


def in_lists(elements: list[bytes]) -> tuple[bytes, ...]:
    """Elements in as few lists as their attributes can hold."""
    at_once = _LONGEST_LIST // max(map(len, elements))
    return tuple([b"".join(elements[first : first + at_once]) for first in range(0, len(elements), at_once)])


def frame(size: int, flags: bytes = b"") -> tuple[bytes, bytes]:
    """An element's attributes before and after the value, as the kernel dumps them."""
    element = attribute(1, attribute(KEY, attribute(VALUE, bytes(size))) + flags)
    return element[:_HEAD], element[_HEAD + size :]
