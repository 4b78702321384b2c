"""The messages of a Run: those of two values that differ in every bit, and each value's bytes where they differ.

The rules of a run differ in their destination or in their destination ports alone. Packing 10,000 of them rule by rule
would take longer than the kernel does.
"""

from __future__ import annotations

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

ONES = 0xFFFF


def contents(run: Run, pack: Pack) -> list[Content]:
    """The content of each rule of a run. KernelError as `pack`; ValueError where it cannot be made from a template."""
    columns = [_column(rule, run.values, pack) for rule in run.unit]
    last = Run(run.unit, run.values[-1:]).rules()
    if [column[-1] for column in columns] != [pack(rule) for rule in last]:
        raise ValueError("a value is not at the expected place of a message")
    return columns[0] if len(columns) == 1 else [each for row in zip(*columns, strict=True) for each in row]


def _column(rule: Rule, values: tuple[Network, ...] | tuple[PortRange, ...], pack: Pack) -> list[Content]:
    """The content of one rule of the unit for each value."""
    # All values are of one kind; to check each of 10,000 would be noticeable.
    each: Any = values
    if isinstance(values[0], Network):
        return list(_networks(rule, each, pack))
    return list(_ports(rule, each, pack))


def _networks(rule: Rule, values: tuple[Network, ...], pack: Pack) -> Iterator[Content]:
    templates: dict[int, tuple[bytes, int, bytes, bytes, bytes]] = {}
    width = len(values[0].address)
    for value in values:
        template = templates.get(value.prefix)
        if template is None:
            bits = 8 * width
            ones = ((1 << value.prefix) - 1 << bits - value.prefix).to_bytes(width, "big")
            (head, tail), after, rest = _template(
                rule, (Network(bytes(width), value.prefix), Network(ones, value.prefix)), pack
            )
            template = templates[value.prefix] = head, (value.prefix + 7) // 8, tail, after, rest
        if len(value.address) != width:
            raise ValueError("addresses of two families")
        head, size, tail, after, rest = template
        yield head + value.address[:size] + tail, after, rest


def _ports(rule: Rule, values: tuple[PortRange, ...], pack: Pack) -> Iterator[Content]:
    one = many = None
    for value in values:
        if value.low == value.high:
            if one is None:
                one = _template(rule, (PortRange(0, 0), PortRange(ONES, ONES)), pack)
            (head, tail), after, rest = one
            yield head + value.low.to_bytes(2, "big") + tail, after, rest
        else:
            if many is None:
                many = _template(rule, (PortRange(0, ONES), PortRange(ONES, 0)), pack)
            (head, between, tail), after, rest = many
            yield head + value.low.to_bytes(2, "big") + between + value.high.to_bytes(2, "big") + tail, after, rest


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
