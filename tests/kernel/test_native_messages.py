"""Native tables as netlink messages: written, dumped and read again, and dumps that no kernel sends."""

from __future__ import annotations

from itertools import permutations
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_init import plan
from istio_init.errors import KernelError
from istio_init.formats.nft.layout import layout
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import HEAD
from istio_init.kernel.nft.expressions import EXPRESSIONS, expression
from istio_init.kernel.nft.native_decode import read_table
from istio_init.kernel.nft.native_dump import holds
from istio_init.kernel.nft.native_encode import TableEncoder
from istio_init.kernel.nft.set_elements import are_elements, dumped_ranges, frame, ranged_elements, single_elements
from istio_init.kernel.nft.set_intervals import members, read_intervals, read_values
from istio_init.model.inet import NAMES, InetTable, merged
from tests.kit.nft_messages import dumped
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.kernel.nft.native_dump import TableDump
    from istio_init.model.inet import Interval


def tables(name: str) -> list[InetTable]:
    """The tables of a case."""
    chosen = options(argv(name), {})
    assert chosen is not None
    result = [layout(plan(chosen).rulesets, each) for each in NAMES]
    return [each for each in result if each.chains]


SIZES = st.sampled_from([2, 4, 16])


@st.composite
def intervals(draw: st.DrawFn) -> tuple[int, tuple[Interval, ...]]:
    """A size of values, and intervals of them that are apart; the first and the last value of all among them."""
    size = draw(SIZES)
    last = (1 << 8 * size) - 1
    values = st.one_of(st.integers(0, 40), st.integers(last - 40, last), st.integers(0, last))
    pairs = draw(st.lists(st.tuples(values, values), min_size=1, max_size=30))
    return size, merged((min(pair), max(pair)) for pair in pairs)


@given(intervals(), st.randoms(use_true_random=False))
@example((2, ((0, 65535),)), Random(1))
@example((4, ((0, 5), (2**32 - 1, 2**32 - 1))), Random(1))
@example((4, ((0, 0), (65495, 65535))), Random(0))
def test_intervals_come_back_in_whatever_order_they_are_dumped(
    pair: tuple[int, tuple[Interval, ...]], random: Random
) -> None:
    size, spans = pair
    lists = ranged_elements(spans, size)
    assert read_intervals(lists, size, ranged=True) == spans
    shuffled = [attribute(1, each) for each in members(b"".join(lists))]
    random.shuffle(shuffled)
    assert read_intervals(shuffled, size, ranged=True) == spans


@given(intervals())
@example((2, ((0, 65535),)))
@example((4, ((0, 5), (2**32 - 1, 2**32 - 1))))
def test_what_is_sent_ascending_is_dumped_descending(pair: tuple[int, tuple[Interval, ...]]) -> None:
    size, spans = pair
    sent = [*members(b"".join(ranged_elements(spans, size)))]
    assert b"".join([attribute(1, each) for each in reversed(sent)]) == dumped_ranges(spans, size)


@pytest.mark.parametrize("size", [2, 4, 16])
@pytest.mark.parametrize("spans", [((0, 0), (65495, 65533)), ((3, 3), (7, 9)), ((0, 0), (65495, 65535))])
def test_an_end_belongs_to_a_beginning_below_it_whatever_is_dumped_next(size: int, spans: tuple[Interval, ...]) -> None:
    for order in permutations(members(b"".join(ranged_elements(spans, size)))):
        assert read_intervals([attribute(1, each) for each in order], size, ranged=True) == spans


@given(SIZES, st.sets(st.integers(0, 65535), min_size=1, max_size=300))
def test_single_values_come_back(size: int, values: set[int]) -> None:
    lists = single_elements([value.to_bytes(size) for value in sorted(values)], size)
    assert read_intervals(lists, size, ranged=False) == merged((value, value) for value in values)


@given(SIZES, st.sets(st.integers(0, 65535), min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_a_hash_table_is_compared_in_whatever_order_it_is_dumped(size: int, values: set[int], random: Random) -> None:
    packed = [value.to_bytes(size) for value in values]
    shuffled = random.sample(packed, len(packed))
    cut = random.randrange(len(shuffled) + 1)
    lists = [*single_elements(shuffled[:cut], size), *single_elements(shuffled[cut:], size)]
    assert are_elements(lists, frozenset(packed), size)
    assert read_values(lists, size) == frozenset(packed)
    assert not are_elements(lists, frozenset(packed[1:]), size)
    other = frozenset((*packed[1:], (65536 - 1 - max(values)).to_bytes(size)))
    assert are_elements(lists, other, size) == (other == frozenset(packed))
    assert not are_elements([lists[0][:-4], *lists[1:]], frozenset(packed), size)
    marked = lists[0][:2] + bytes((lists[0][2] ^ 2,)) + lists[0][3:]
    assert not are_elements([marked, *lists[1:]], frozenset(packed), size)


@given(st.sets(st.integers(0, 3), min_size=1), st.integers(0, 12))
def test_an_address_that_looks_like_the_head_of_an_element_is_never_taken_for_another(
    numbers: set[int], at: int
) -> None:
    """It may count as a difference, and is then decoded."""
    head = frame(16)[0]
    values = frozenset((head[at:] + head)[:12].ljust(12, b"\0") + number.to_bytes(4) for number in numbers)
    lists = single_elements(values, 16)
    assert read_values(lists, 16) == values
    assert not are_elements(lists, frozenset((*values, bytes(16))), 16)


def test_long_lists_are_cut_where_an_attribute_ends() -> None:
    spans = tuple((n * 256, n * 256 + 1) for n in range(1, 10_000))
    lists = ranged_elements(spans, 4)
    assert len(lists) > 1
    assert all(len(each) <= 0xFFFB for each in lists)
    assert read_intervals(lists, 4, ranged=True) == spans


@pytest.mark.parametrize(
    ("data", "ranged"),
    [
        (attribute(1, attribute(1, attribute(1, b"\0\5")) + attribute(3, b"\0\0\0\1")), True),  # an end alone
        (attribute(1, attribute(1, attribute(1, b"\0\5")) + attribute(3, b"\0\0\0\1")), False),
        (attribute(1, attribute(1, attribute(1, b"\0\5"))) * 2, True),  # begun twice
        (attribute(1, attribute(1, attribute(1, b"\0\5\0"))), False),  # of another size
        (attribute(1, attribute(1, attribute(1, b"\0\5")) + attribute(4, bytes(8))), False),  # with a timeout
        (attribute(1, attribute(1, attribute(1, b"\0\5")) + attribute(3, b"\0\0\0\2")), False),  # of every value
        (b"\x40\0\1\0\0\0", False),  # cut short
    ],
)
def test_elements_that_are_more_than_values_are_refused(data: bytes, ranged: bool) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_intervals([data], 2, ranged=ranged)


@pytest.mark.parametrize("name", CASES)
def test_a_dump_of_what_was_written_is_recognised(name: str) -> None:
    for table in tables(name):
        assert holds(counted(dumped(table)), TableEncoder().encode(table))


def counted(dump: TableDump) -> TableDump:
    """The dump with counters as the kernel fills them in, and without the numbers that only a batch has."""
    rules = []
    for data in dump.rules:
        facts = attributes(data[HEAD.size :])
        facts[EXPRESSIONS] = b"".join(map(kernels_own, members(facts[EXPRESSIONS])))
        rules.append(data[: HEAD.size] + b"".join(attribute(*fact) for fact in facts.items()))
    return dump.replace(rules=tuple(rules))


def kernels_own(member: bytes) -> bytes:
    """An expression as the kernel dumps it: a counter with its numbers, a lookup without its set's in the batch."""
    if b"counter\0" in member:
        number = (7).to_bytes(8, "big")
        return expression("counter", attribute(1, number) + attribute(2, number))
    if b"lookup\0" not in member:
        return attribute(1, member)
    facts = attributes(attributes(member)[2])
    return expression("lookup", b"".join(attribute(*fact) for fact in facts.items() if fact[0] != 4))


def replaced(field: str, old: bytes, new: bytes) -> Callable[[TableDump], TableDump]:
    """Some bytes changed in all chains or rules of a dump."""
    return lambda dump: dump.replace(**{field: tuple(each.replace(old, new) for each in getattr(dump, field))})


def elements(change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Callable[[TableDump], TableDump]:
    """The lists of elements of all sets changed."""
    return lambda dump: dump.replace(elements={name: change(lists) for name, lists in dump.elements.items()})


CHANGES: dict[str, Callable[[TableDump], TableDump]] = {
    "a rule less": lambda dump: dump.replace(rules=dump.rules[:-1]),
    "a rule twice": lambda dump: dump.replace(rules=(*dump.rules, dump.rules[-1])),
    "a chain more": lambda dump: dump.replace(chains=(*dump.chains, dump.chains[-1].replace(b"istio-r", b"other-r"))),
    "another type of chain": replaced("chains", b"nat\0", b"rte\0"),
    "switched off": lambda dump: dump.replace(table=dump.table + attribute(2, b"\0\0\0\1")),
    "another port": replaced("rules", b"\x3a\x99", b"\x3a\x98"),
    "a set less": lambda dump: dump.replace(sets=dump.sets[1:]),
    "no elements": elements(lambda lists: lists[1:]),
    "another element": elements(lambda lists: tuple(each.replace(b"\x3a\xf2", b"\x3a\xf3") for each in lists)),
    "a comment": lambda dump: dump.replace(rules=(dump.rules[0] + attribute(7, b"\0\2a\0"), *dump.rules[1:])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_differs_is_seen(change: str) -> None:
    [table] = tables("article")
    dump = counted(dumped(table))
    other = CHANGES[change](dump)
    assert other != dump
    assert not holds(other, TableEncoder().encode(table))


@given(st.sampled_from(sorted(CASES)), st.data())
def test_a_dump_that_no_kernel_sends_is_an_error_or_a_table(name: str, data: st.DataObject) -> None:
    """Cut short, or with a byte changed, anywhere."""
    table = data.draw(st.sampled_from(tables(name)))
    dump = dumped(table)
    kind = data.draw(st.sampled_from(["table", "chains", "rules", "sets", "elements"]))
    match kind:
        case "elements":
            dump = elements(lambda lists: tuple(damaged(one, data) for one in lists))(dump)
        case "table":
            dump = dump.replace(table=damaged(dump.table, data))
        case _:
            dump = dump.replace(**{kind: tuple(damaged(one, data) for one in getattr(dump, kind))})
    read_or_refused(table, dump)


def read_or_refused(table: InetTable, dump: TableDump) -> None:
    """A dump is read as some table, or refused in one line."""
    message = ""
    try:
        read = read_table(table.name, dump)
        assert read.counts.keys() == {chain.name for chain in read.table.chains}
    except KernelError as error:
        message = str(error)
    assert message.isprintable()
    holds(dump, TableEncoder().encode(table))


def damaged(message: bytes, data: st.DataObject) -> bytes:
    """A message that is cut short, or has another byte in one place."""
    at = data.draw(st.integers(0, len(message) - 1))
    if data.draw(st.booleans()):
        return message[:at]
    return message[:at] + bytes((data.draw(st.integers(0, 255)),)) + message[at + 1 :]
