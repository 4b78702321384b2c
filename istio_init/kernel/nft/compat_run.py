"""The messages of a Run: those of two values that differ in every bit, and each value's bytes where they differ.

The rules of a run differ in their destination or in their destination ports alone. Packing 10,000 of them rule by rule
would take longer than the kernel does. So they stay columns of pieces, most of which are the same few objects over and
over, up to the one buffer that the kernel gets.
"""

from __future__ import annotations

from istio_init.kernel.netlink.batch import MessageRun
from istio_init.kernel.netlink.channel import HEADER
from istio_init.model.rules import Network, PortRange, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias, TypeVar

    from istio_init.model.rules import Rule

    Value = TypeVar("Value", Network, PortRange)
    # What a rule's message says: the expressions up to the counter's numbers, those behind them, and what the kernel
    # does not dump.
    Content: TypeAlias = tuple[bytes, bytes, bytes]
    Pack: TypeAlias = Callable[[Rule], Content]
    # The bytes around the values in the first part of a content, and its other parts.
    Template: TypeAlias = tuple[list[bytes], bytes, bytes]
    # What the contents of values of one kind have in common: the bytes before a value, its size, those behind it, and
    # the other parts.
    Shape: TypeAlias = tuple[bytes, int, bytes, bytes, bytes]
    # The contents of one rule of the unit: the shape of each kind, the kind of each value, and each value's bytes.
    Column: TypeAlias = tuple[dict[int, Shape], list[int], list[bytes]]

ONES = 0xFFFF
_ALONE, _RANGE = 0, 1  # the kinds of ports; those of networks are their prefix lengths
_PORT_SIZE = 2
_WORD = 4  # an attribute's value is padded to words of so many bytes


class RunContents:
    """The content of each rule of a run. KernelError as `pack`; ValueError where it cannot be made from a template."""

    def __init__(self, run: Run, pack: Pack) -> None:
        self._count = len(run)
        # All values are of one kind; to check each of 10,000 would be noticeable.
        values: Any = run.values
        make = _networks if isinstance(values[0], Network) else _ports
        self._columns = [make(rule, values, pack) for rule in run.unit]
        last = Run(run.unit, run.values[-1:]).rules()
        ends = [(shapes, kinds[-1:], varying[-1:]) for shapes, kinds, varying in self._columns]
        if [content for end in ends for content in _contents(end)] != [pack(rule) for rule in last]:
            raise ValueError("a value is not at the expected place of a message")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Content]:
        if len(self._columns) == 1:
            return _contents(self._columns[0])
        return (content for row in zip(*map(_contents, self._columns), strict=True) for content in row)

    def messages(self, kind: int, flags: int, place: bytes, counts: bytes, signed: bytes) -> MessageRun:
        """A message for each rule: `place`, its content with the counter's numbers, and the signature."""
        sizes = [0] * self._count
        heads, varying, tails = ([b""] * self._count for _ in range(3))
        step = len(self._columns)
        for at, (shapes, kinds, values) in enumerate(self._columns):
            before, behind, whole = {}, {}, {}
            for each, (head, size, tail, after, compat) in shapes.items():
                before[each] = place + head
                behind[each] = b"".join((tail, counts, after, compat, signed))
                whole[each] = HEADER.size + len(before[each]) + size + len(behind[each])
            heads[at::step] = map(before.__getitem__, kinds)
            varying[at::step] = values
            tails[at::step] = map(behind.__getitem__, kinds)
            sizes[at::step] = map(whole.__getitem__, kinds)
        return MessageRun(kind, flags, sizes, heads, varying, tails)


def _contents(column: Column) -> Iterator[Content]:
    shapes, kinds, values = column
    for kind, value in zip(kinds, values, strict=True):
        head, _, tail, after, compat = shapes[kind]
        yield head + value + tail, after, compat


def _networks(rule: Rule, values: tuple[Network, ...], pack: Pack) -> Column:
    """The contents for networks; the bytes of a network are the words of its address that the rule has."""
    width = len(values[0].address)
    kinds = [value.prefix for value in values]
    addresses = [value.address for value in values]
    if sum(map(len, addresses)) != width * len(addresses):
        raise ValueError("addresses of two families")
    shapes = {}
    for prefix in set(kinds):
        ones = ((1 << prefix) - 1 << 8 * width - prefix).to_bytes(width, "big")
        (head, tail), after, compat = _template(rule, (Network(bytes(width), prefix), Network(ones, prefix)), pack)
        size = (prefix + 7) // 8
        padding = -size % _WORD  # zero, as the bytes of the address that are there
        shapes[prefix] = head, size + padding, tail[padding:], after, compat
    if width > _WORD:
        addresses = [address[: shapes[kind][1]] for address, kind in zip(addresses, kinds, strict=True)]
    return shapes, kinds, addresses


def _ports(rule: Rule, values: tuple[PortRange, ...], pack: Pack) -> Column:
    """The contents for ports; the bytes of a range are what is between its two ports, too."""
    (head, tail), after, compat = _template(rule, (PortRange(0, 0), PortRange(ONES, ONES)), pack)
    shapes = {_ALONE: (head, _PORT_SIZE, tail, after, compat)}
    kinds = [_ALONE if value.low == value.high else _RANGE for value in values]
    packed = [value.low.to_bytes(_PORT_SIZE, "big") for value in values]
    if _RANGE in kinds:
        (head, between, tail), after, compat = _template(rule, (PortRange(0, ONES), PortRange(ONES, 0)), pack)
        shapes[_RANGE] = head, 2 * _PORT_SIZE + len(between), tail, after, compat
        packed = [
            low + between + value.high.to_bytes(_PORT_SIZE, "big") if kind else low
            for low, value, kind in zip(packed, values, kinds, strict=True)
        ]
    return shapes, kinds, packed


def _template(rule: Rule, values: tuple[Value, Value], pack: Pack) -> Template:
    """What the rule's content is apart from its value, by two values that differ in all bytes."""
    (one, after, rest), (other, *same) = (pack(each) for value in values for each in Run((rule,), (value,)).rules())
    if len(one) != len(other) or [after, rest] != same:
        raise ValueError("messages of different shapes")
    parts: list[bytes] = []
    start, inside = 0, False
    for at, (left, right) in enumerate(zip(one, other, strict=True)):
        if (left != right) != inside:
            if not inside:
                parts.append(one[start:at])
            start, inside = at, not inside
    parts.append(one[start:])
    return parts, after, rest
