"""The classes of one dimension's values: no rule, option or IP set tells two values of one class apart."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING

from istio_init.model.inet import interval
from istio_init.verify.set_products import product, sweep

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator
    from typing import TypeAlias

    from istio_init.model.ip_sets import IpSet
    from istio_init.model.rules import Network

    # A range's first and last number, and what it is: ranges of one label are not told apart.
    ValueRange: TypeAlias = tuple[int, int, Hashable]

ALL_BITS = 0xFFFFFFFF
# The preferred representatives of classes, since people read the packets; addresses are from RFC 5737 and RFC 3849.
USUAL_PORT, USUAL_ID = 8080, 1000
USUAL_ADDRESSES = (bytes((198, 51, 100, 7)), bytes.fromhex("20010db80001") + bytes(9) + b"\7")
# Masks divide a mark's bits into groups; a space has at most this many combinations of their values.
MOST_MARKS = 4096


def interval_classes(ranges: list[ValueRange], highest: int, usual: tuple[int, ...]) -> tuple[int, ...]:
    """A number for each set of numbers that are in ranges of the same labels; a usual one if possible."""
    classes: dict[frozenset[Hashable], int] = {}
    places = (place for place in sweep([(*each, 0) for each in ranges]) if place[0] <= highest)
    for (start, active), (following, _) in pairwise(chain(places, [(highest + 1, [])])):
        preferred = next((number for number in usual if start <= number < following), None)
        labels = frozenset(each[2] for each in active)
        if preferred is not None:
            classes[labels] = preferred
        else:
            classes.setdefault(labels, start)
    return tuple(classes.values())


def set_ranges(sets: list[IpSet], kind: str, highest: int) -> Iterator[ValueRange]:
    """The ranges of addresses or ports that sets tell apart."""
    for each in sets:
        shape = product(each)
        for axis in shape.axes if shape else ():
            if axis.kind == kind:
                for low, high, number in axis.ranges(highest):
                    yield low, high, (each.name, axis.dimension, number)


def address_classes(networks: Iterable[Network], length: int, more: Iterable[ValueRange]) -> tuple[bytes, ...]:
    """An address for each set of addresses that are in the same networks, and the same for IP sets."""
    ranges: list[ValueRange] = [*more]
    for network in networks:
        span = interval(network)
        ranges.append((*span, span))
    usual = tuple(int.from_bytes(address) for address in USUAL_ADDRESSES if len(address) == length)
    return tuple(each.to_bytes(length) for each in interval_classes(ranges, (1 << length * 8) - 1, usual))


def interface_classes(names: set[str]) -> tuple[str, ...]:
    """The names, one further name for each prefix, one that no rule names, and the empty name."""
    plain = {name for name in names if not name.endswith("+")}
    plain |= {f"{name[:-1]}~"[:15] for name in names if name.endswith("+") and name != "+"}
    return ("", "other~", *sorted(plain))


def mark_classes(marks: set[tuple[int, int]]) -> tuple[tuple[int, ...], list[tuple[int, set[int], int]]]:
    """A mark for each combination that masks can distinguish, and the groups of bits.

    A group has its bits, the values in rules, and one value that represents all others.
    """
    groups = [ALL_BITS]
    for _, mask in marks:
        groups = [part for group in groups for part in (group & mask, group & ~mask) if part]
    parts = []
    combined = {0}
    for group in groups:
        named = {value & group for value, _ in marks}
        other = next((part for part in _subsets(group) if part not in named), min(named))
        parts.append((group, named, other))
        combined = {base | part for base in combined for part in {*named, other}}
        if len(combined) > MOST_MARKS:
            raise ValueError(f"marks differ in more than {MOST_MARKS} combinations")
    return tuple(sorted(combined)), parts


def _subsets(group: int) -> Iterator[int]:
    """The non-zero values within a group of bits, in descending order."""
    subset = group
    while subset:
        yield subset
        subset = (subset - 1) & group
