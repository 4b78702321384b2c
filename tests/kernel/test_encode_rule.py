"""Rules in the kernel's structs: read back as they were, and refused where no struct can hold them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.errors import KernelError
from istio_init.kernel.xtables.encode_rule import SIGNATURE, pack
from istio_init.kernel.xtables.ip_header import HEADER, LAYOUTS
from istio_init.kernel.xtables.pack_chain import entries_of, pack_chain
from istio_init.kernel.xtables.packed_run import PackedRun
from istio_init.kernel.xtables.unpack_table import unpack_table
from istio_init.model.extensions import (
    Mark,
    Multiport,
    SetMark,
    Tproxy,
)
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    IPV6,
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Run,
    Source,
    SourcePorts,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import Comment, UnknownMatch
from tests.kit.strategies import MATCHES, TARGETS, families, rules, tables
from tests.kit.xtables_blob import Blob, offsets, unpack

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Match, TableName

PORT = PortRange(80, 80)
NETWORK4, NETWORK6 = Network(b"\x0a\0\0\0", 8), Network(b"\xfd" + bytes(15), 8)
RETURN = Verdict("RETURN")
TABLES: tuple[TableName, ...] = ("raw", "mangle", "nat")
JUMPS = ("ISTIO_OUTPUT", "x" * 28)


def reread(rule: Rule, family: Family) -> Rule:
    return unpack(pack(rule, family), family, is_standard=isinstance(rule.target, Verdict | Jump))


# Round trips


@pytest.mark.parametrize("kind", [*MATCHES, *TARGETS])
@given(family=families, data=st.data())
def test_every_kind_is_read_back(kind: type, family: Family, data: st.DataObject) -> None:
    if kind in MATCHES:
        match = data.draw(MATCHES[kind](family))
        needed = (Protocol(TCP),) if isinstance(match, SourcePorts | DestinationPorts) else ()
        rule = Rule((*needed, match), RETURN)
    else:
        rule = Rule((), data.draw(TARGETS[kind](family)))
    assert reread(rule, family) == rule


@given(families.flatmap(lambda family: st.tuples(st.just(family), st.sampled_from(TABLES))), st.data())
def test_whole_rules_are_read_back_as_ours(where: tuple[Family, TableName], data: st.DataObject) -> None:
    family, table = where
    rule = data.draw(rules(family, table, JUMPS))
    again = reread(rule, family)
    assert again == rule
    assert again.ours
    assert pack(again, family) == pack(rule, family)


@given(families.flatmap(lambda family: st.tuples(st.just(family), st.sampled_from(TABLES))), st.data())
def test_a_changed_byte_is_never_lost(where: tuple[Family, TableName], data: st.DataObject) -> None:
    """Whatever is in the fields: what is read says all of it, so packing it gives the same bytes again."""
    family, table = where
    rule = data.draw(rules(family, table, JUMPS))
    entry = bytearray(pack(rule, family))
    target, end = offsets(bytes(entry), family)
    is_standard = isinstance(rule.target, Verdict | Jump)
    places = [*range(LAYOUTS[family].struct.size - (3 if family == IPV6 else 0))]  # without the padding
    starts = [] if is_standard else [target]
    at = LAYOUTS[family].size
    while at < target:
        starts.append(at)
        at += struct.unpack_from("=H", entry, at)[0]
    for start in starts:
        size = struct.unpack_from("=H", entry, start)[0]
        places += range(start + 31, start + size)  # the revision and the data
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        entry[place] = data.draw(st.integers(0, 255))
    again = unpack(bytes(entry), family, is_standard=is_standard)
    expected = bytes(entry)
    assert pack(again, family) == expected
    assert len(expected) == end


@given(
    families.flatmap(
        lambda family: st.sampled_from(TABLES).flatmap(lambda n: st.tuples(st.just(family), tables(family, n)))
    )
)
def test_whole_tables_are_read_back(drawn: tuple[Family, Table]) -> None:
    family, table = drawn
    blob = Blob(table, family)
    read = unpack_table(table.name, family, blob.answers)
    assert read == table
    signatures = [[rule.ours for rule in chain.rules] for chain in read.chains]
    assert signatures == [[rule.ours for rule in chain.rules] for chain in table.chains]


def units(family: Family, kind: type) -> st.SearchStrategy[tuple[Rule, ...]]:
    """One or two rules with one match of the kind, among others as those of a plan are."""
    around = [Protocol(TCP)] if kind is DestinationPorts else [InInterface("eth0")]
    behind: list[Match] = [] if kind is Destination else [Owner("uid", 1, 1)]
    targets = st.sampled_from((RETURN, Jump("ISTIO_REDIRECT"), SetMark(1)))
    rule = st.builds(
        lambda match, more, target: (
            Rule((match, *around, *more), target) if kind is Destination else Rule((*around, match, *more), target)
        ),
        MATCHES[kind](family),
        st.lists(st.sampled_from(behind), max_size=1) if behind else st.just([]),
        targets,
    )
    return st.lists(rule, min_size=1, max_size=2).map(tuple)


@st.composite
def runs(draw: st.DrawFn, family: Family) -> Run:
    kind = draw(st.sampled_from((Destination, DestinationPorts)))
    matches: st.SearchStrategy[Any] = MATCHES[kind](family)
    # What asks for nothing is not read back: the strategy has it negated alone.
    drawn = draw(st.lists(matches.filter(lambda match: not match.negated), min_size=1, max_size=9))
    values: Any = tuple(match.network if isinstance(match, Destination) else match.ports for match in drawn)
    unit = draw(units(family, kind))
    return Run(tuple(next(Run((rule,), values[:1]).rules()).replace(ours=True) for rule in unit), values)


@given(families.flatmap(lambda family: st.tuples(st.just(family), runs(family))))
def test_a_run_is_packed_as_each_of_its_rules_alone(drawn: tuple[Family, Run]) -> None:
    family, run = drawn
    packed = pack_chain(Chain.of("ISTIO_OUTPUT", (run,)), family)
    assert list(entries_of(packed)) == [pack(rule, family) for rule in run.rules()]
    assert len(list(run.rules())) == len(run)


@given(families.flatmap(lambda family: st.tuples(st.just(family), runs(family))), st.data())
def test_a_chain_that_is_as_expected_is_the_very_chain(drawn: tuple[Family, Run], data: st.DataObject) -> None:
    family, run = drawn
    around = tuple(rule.replace(ours=True) for rule in data.draw(st.lists(rules(family, "nat"), max_size=2)))
    desired = Chain.of("ISTIO_OUTPUT", (*around, run, *around))
    chains = {"ISTIO_OUTPUT": desired, "ISTIO_REDIRECT": Chain("ISTIO_REDIRECT", ())}
    for rule in around:
        if isinstance(rule.target, Jump):
            chains.setdefault(rule.target.chain, Chain(rule.target.chain, ()))
    standing = Blob(Table("nat", ordered("nat", chains)), family).answers
    expected = {"ISTIO_OUTPUT": (desired, pack_chain(desired, family))}
    assert unpack_table("nat", family, standing, expected).chain("ISTIO_OUTPUT") is desired
    # One rule more, less, or another: what exists is read.
    spelled_out = list(desired.rules)
    at = data.draw(st.integers(0, len(spelled_out) - 1))
    change = data.draw(st.sampled_from(("more", "less", "other")))
    spelled_out[at : at + (change != "more")] = [] if change == "less" else [Rule((), Verdict("DROP"))]
    chains["ISTIO_OUTPUT"] = Chain("ISTIO_OUTPUT", tuple(spelled_out))
    standing = Blob(Table("nat", ordered("nat", chains)), family).answers
    actual = unpack_table("nat", family, standing, expected).chain("ISTIO_OUTPUT")
    assert actual == chains["ISTIO_OUTPUT"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at", [0, 1, 499, 500, 1000, 1233])
def test_another_value_is_seen_wherever_in_a_long_run_it_stands(family: Family, at: int) -> None:
    """And of counters and comefrom none is."""
    size, layout = 4 if family == IPV4 else 16, LAYOUTS[family]
    networks = tuple(Network(n.to_bytes(2) + bytes(size - 2), 16 + n % 3) for n in range(1234))
    run = PackedRun(Run((Rule((Destination(networks[0]),), RETURN),) * 2, networks), family)
    entry = len(run.unit) // 2
    for rule in (0, 1):
        start = (2 * at + rule) * entry
        standing = bytearray(b"".join(run.entries()))
        standing[start + layout.counters_at : start + layout.size] = b"\1" * (layout.size - layout.counters_at)
        assert run.matches(standing, 0)
        # A byte of the address, of its mask, and of the target.
        for place in (size, 3 * size, entry - 1):
            standing[start + place] ^= 1
            assert not run.matches(standing, 0)
            standing[start + place] ^= 1


@pytest.mark.parametrize(
    "wrong",
    [
        Run((Rule((Protocol(TCP), DestinationPorts(PORT)), RETURN),), (PORT, PORT, PORT, PortRange(1, 65536), PORT)),
        Run((Rule((Protocol(TCP), DestinationPorts(PORT)), RETURN),), (PORT, PORT, PORT, PortRange(-1, 1), PORT)),
        Run((Rule((Destination(NETWORK4),), RETURN),), (NETWORK4, NETWORK4, NETWORK4, NETWORK6, NETWORK4)),
        Run((Rule((Destination(NETWORK4),), RETURN),), (*[NETWORK4] * 4, Network(bytes(4), 33))),
    ],
)
def test_what_no_struct_can_hold_is_found_among_many(wrong: Run) -> None:
    with pytest.raises(KernelError):
        pack_chain(Chain.of("ISTIO_OUTPUT", (wrong,)), IPV4)


# What no struct can hold


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule((DestinationPorts(PORT),), RETURN), "-p tcp or -p udp"),
        (Rule((Protocol(TCP, True), SourcePorts(PORT)), RETURN), "-p tcp or -p udp"),
        (Rule((Protocol(1), DestinationPorts(PORT)), RETURN), "-p tcp or -p udp"),
        (Rule((Protocol(TCP), DestinationPorts(PortRange(1, 65536))), RETURN), "65535"),
        (Rule((Protocol(TCP), Protocol(UDP)), RETURN), "two protocols"),
        (Rule((Source(NETWORK4), Source(NETWORK4)), RETURN), "two networks"),
        (Rule((Source(NETWORK6),), RETURN), "not a network of ipv4"),
        (Rule((Destination(Network(bytes(4), 33)),), RETURN), "not a network of ipv4"),
        (Rule((InInterface("a"), InInterface("b")), RETURN), "two interfaces"),
        (Rule((OutInterface("x" * 16),), RETURN), "1 to 15 bytes"),
        (Rule((OutInterface(""),), RETURN), "1 to 15 bytes"),
        (Rule((Multiport("dports", (PORT,) * 16),), RETURN), "1 to 15 ports"),
        (Rule((Multiport("dports", ()),), RETURN), "1 to 15 ports"),
        (Rule((Comment("x" * 256),), RETURN), "255 bytes"),
        (Rule((Comment("a\0b"),), RETURN), "255 bytes"),
        (Rule((Mark(1 << 32),), RETURN), "4294967295"),
        (Rule((), Jump("x" * 29)), "longer than 28 bytes"),
        (Rule((), Tproxy(1, bytes(16), 1)), "not one of ipv4"),
        (Rule((), Redirect(PortRange(1, 65536))), "too big"),
        (Rule((UnknownMatch(HEADER, 0, bytes(80)),), RETURN), "84 bytes"),
        (Rule((UnknownMatch(HEADER, 0, bytes(84)), Protocol(TCP)), RETURN), "all of the header"),
    ],
)
def test_what_no_struct_can_hold_is_an_error(rule: Rule, why: str) -> None:
    with pytest.raises(KernelError, match=why) as error:
        pack(rule, IPV4)
    assert repr(rule) in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_signature_is_where_iptables_does_not_look(family: Family) -> None:
    entry = pack(Rule((), RETURN), family)
    at = {IPV4: 84, IPV6: 136}[family]
    assert entry[at : at + 4] == b"ISTI"
    assert not unpack(entry.replace(SIGNATURE, bytes(4)), family, is_standard=True).ours
