"""Numbers of a packet that a rule did not determine: a mark from a hash, a port that the kernel chooses from a range.

A plain run has none. Numbers are in host order; an address is its bytes as one number.
"""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ALL_BITS = 0xFFFFFFFF


class OpenNumber(Record):
    """What a packet's `field` may be, and the rule's `why`: any number from `low` to `high`.

    With `bits` it is `low` with any of these bits, which `low` has not; `high` has them all.
    """

    field: str
    low: int
    high: int
    why: str
    bits: int = 0

    @property
    def varying(self) -> int:
        """The bits in which two of the numbers differ."""
        return self.bits or (1 << (self.low ^ self.high).bit_length()) - 1

    def can_be(self, value: int, mask: int) -> bool:
        """Whether one of the numbers is `value` under the mask."""
        if value & ~mask:
            return False
        if self.bits:
            return not (self.low ^ value) & mask & ~self.bits
        least = next(_matching(self.low, value, mask), None)
        return least is not None and least <= self.high

    def must_be(self, value: int, mask: int) -> bool:
        """Whether each of the numbers is `value` under the mask."""
        return not mask & self.varying and self.low & mask == value

    def within(self, low: int, high: int) -> bool | None:
        """Whether the numbers are in a range; None if some are."""
        if low <= self.low and self.high <= high:
            return True
        return False if self.high < low or high < self.low else None

    def written(self, value: int, mask: int) -> OpenNumber | int:
        """The numbers after the bits of `mask` were cleared and those of `value` flipped; one number if it is sure."""
        varying = self.varying & ~mask
        if not varying:
            return (self.low & ~mask) ^ value
        if not self.bits and not (mask | value) & self.varying:
            return self.replace(low=(self.low & ~mask) ^ value, high=(self.high & ~mask) ^ value)
        base = ((self.low & ~mask) ^ value) & ~varying
        return self.replace(low=base, high=base | varying, bits=varying)


def _matching(low: int, value: int, mask: int) -> Iterator[int]:
    """Numbers from `low` on, the least first, that are `value` under the mask."""
    if low & mask == value:
        yield low
    for bit in range(ALL_BITS.bit_length()):
        place, above = 1 << bit, -1 << bit + 1
        if not low & place and (value & place or not mask & place) and not (low ^ value) & mask & above:
            yield low & above | place | value & (place - 1)


def either(field: str, one: OpenNumber | int, other: OpenNumber | int, why: str) -> OpenNumber | int:
    """What a field may be that is one number or the other."""
    if one == other:
        return one
    first, second = (each.low if isinstance(each, OpenNumber) else each for each in (one, other))
    bits = first ^ second
    for each in (one, other):
        bits |= each.varying if isinstance(each, OpenNumber) else 0
    base = first & ~bits
    return OpenNumber(field, base, base | bits, why, bits)
