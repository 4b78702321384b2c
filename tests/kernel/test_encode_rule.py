"""The kernel's structs: sizes, bytes, and that nothing is ever read as what it is not."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.errors import KernelError
from istio_init.kernel.xtables.decode_rule import EntryReader
from istio_init.kernel.xtables.encode_rule import SIGNATURE, pack
from istio_init.kernel.xtables.ip_header import HEADER, LAYOUTS
from istio_init.kernel.xtables.pack_chain import entries_of, pack_chain
from istio_init.kernel.xtables.packed_run import PackedRun
from istio_init.kernel.xtables.required_modules import extensions
from istio_init.kernel.xtables.unpack_table import unpack_table
from istio_init.model.extensions import (
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    IPV6,
    OWN_CHAINS,
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
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from tests.kit.strategies import MATCHES, TARGETS, families, rules, tables
from tests.kit.xtables_blob import Blob

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Match, TableName, Target

PORT = PortRange(80, 80)
NETWORK4, NETWORK6 = Network(b"\x0a\0\0\0", 8), Network(b"\xfd" + bytes(15), 8)
RETURN = Verdict("RETURN")
TABLES: tuple[TableName, ...] = ("raw", "mangle", "nat")
JUMPS = ("ISTIO_OUTPUT", "x" * 28)


def unpack(entry: bytes, family: Family, *, is_standard: bool) -> Rule:
    return EntryReader(family).rule(entry, is_standard=is_standard)


def reread(rule: Rule, family: Family) -> Rule:
    return unpack(pack(rule, family), family, is_standard=isinstance(rule.target, Verdict | Jump))


def offsets(entry: bytes, family: Family) -> tuple[int, int]:
    target, end = struct.unpack_from("=HH", entry, LAYOUTS[family].struct.size + 4)
    return target, end


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


# Bytes: each extension's name, revision and data, by the kernel's own headers (<linux/netfilter/xt_*.h>).

ROWS: list[tuple[Family, Match | Target, str, int, bytes]] = [
    (IPV4, SourcePorts(PORT), "tcp", 0, struct.pack("=4H4B4x", 80, 80, 0, 65535, 0, 0, 0, 0)),
    (IPV6, SourcePorts(PORT, True), "tcp", 0, struct.pack("=4H4B4x", 80, 80, 0, 65535, 0, 0, 0, 1)),
    (IPV4, DestinationPorts(PortRange(1, 2), True), "tcp", 0, struct.pack("=4H4B4x", 0, 65535, 1, 2, 0, 0, 0, 2)),
    (
        IPV4,
        Multiport("ports", (PORT, PortRange(1, 9)), True),
        "multiport",
        1,
        struct.pack("=BB15H15BB", 2, 3, 80, 1, 9, *[0] * 12, 0, 1, 0, *[0] * 12, 1),
    ),
    (IPV6, Multiport("sports", (PORT,)), "multiport", 1, struct.pack("=BBH43xB", 0, 1, 80, 0)),
    (IPV4, Owner("uid", 1, 2, True), "owner", 1, struct.pack("=4IBB6x", 1, 2, 0, 0, 1, 1)),
    (IPV4, Owner("gid", 3, 3), "owner", 1, struct.pack("=4IBB6x", 0, 0, 3, 3, 2, 0)),
    (IPV4, Mark(1, 2, True), "mark", 1, struct.pack("=IIB7x", 1, 2, 1)),
    (IPV4, ConnMark(1), "connmark", 1, struct.pack("=IIB7x", 1, 0xFFFFFFFF, 0)),
    (
        IPV4,
        CtState(("INVALID",), True),
        "conntrack",
        3,
        struct.pack("=136x5H3H14x", 0, 0, 0, 0, 0, 1, 1, 1).ljust(168, b"\0"),
    ),
    (IPV6, CtState(("RELATED", "ESTABLISHED")), "conntrack", 3, struct.pack("=146x3H16x", 1, 0, 4 + 2)),
    (
        IPV6,
        CtState(("NEW", "UNTRACKED", "SNAT", "DNAT")),
        "conntrack",
        3,
        struct.pack("=146x3H16x", 1, 0, 8 + 256 + 64 + 128),
    ),
    (IPV4, Comment("why"), "comment", 0, b"why".ljust(256, b"\0")),
    (IPV4, UnknownMatch("x", 3, bytes(8)), "x", 3, bytes(8)),
    (IPV4, Verdict("ACCEPT"), "ACCEPT", 0, bytes(8)),
    (IPV4, Verdict(""), "", 0, bytes(8)),
    (IPV6, Jump("A", True), "A", 0, bytes(8)),
    (IPV4, Redirect(PortRange(1, 0x203)), "REDIRECT", 0, struct.pack("=IIII4B4x", 1, 2, 0, 0, 0, 1, 2, 3)),
    (IPV6, Redirect(PORT), "REDIRECT", 0, struct.pack("=I16x16x4B", 2, 0, 80, 0, 80)),
    (IPV4, Tproxy(0x102, b"abcd", 3, 4), "TPROXY", 1, struct.pack("=II4s12xBB6x", 4, 3, b"abcd", 1, 2)),
    (IPV6, Tproxy(80, bytes(range(16)), 3, 4), "TPROXY", 1, struct.pack("=II16sBB6x", 4, 3, bytes(range(16)), 0, 80)),
    (IPV4, SetMark(1, 2), "MARK", 2, struct.pack("=II", 1, 2)),
    (IPV4, SaveMark(1, 2), "CONNMARK", 2, struct.pack("=IIIBBBx", 0, 2, 1, 0, 0, 1)),
    (IPV4, RestoreMark(1, 2), "CONNMARK", 2, struct.pack("=IIIBBBx", 0, 2, 1, 0, 0, 2)),
    (IPV4, CtZone(5), "CT", 2, struct.pack("=HHII16s32s4xQ", 0, 5, 0, 0, b"", b"", 0)),
    (IPV4, UnknownTarget("X", 1, b"12345678"), "X", 1, b"12345678"),
]
IN_HEADER = {Source, Destination, InInterface, OutInterface, Protocol}


def rule_of(value: Match | Target) -> Rule:
    if type(value) in TARGETS:
        return Rule((), value)  # type: ignore[arg-type]
    return Rule((Protocol(TCP), value), RETURN)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "value", "name", "revision", "data"), ROWS, ids=[repr(row[1]) for row in ROWS])
def test_bytes_of_an_extension(family: Family, value: Match | Target, name: str, revision: int, data: bytes) -> None:
    entry = pack(rule_of(value), family)
    target, end = offsets(entry, family)
    element = entry[target:] if type(value) in TARGETS else entry[LAYOUTS[family].size : target]
    assert end == len(entry)
    assert element == struct.pack("=H29sB", 32 + len(data), name.encode(), revision) + data


def test_no_kind_is_left_out_of_the_bytes() -> None:
    assert {type(value) for _, value, *_ in ROWS} == {*MATCHES, *TARGETS} - IN_HEADER


@pytest.mark.parametrize(("family", "size"), [(IPV4, 112), (IPV6, 168)])
def test_bytes_of_a_header(family: Family, size: int) -> None:
    network = Network(bytes([10]) + bytes(3 if family == IPV4 else 15), 7)
    matches = (
        Source(network, True),
        Destination(network),
        InInterface("lo"),
        OutInterface("veth+", True),
        Protocol(UDP),
    )
    entry = pack(Rule(matches, Jump("A", True)), family)
    mask = bytes([0xFE]).ljust(len(network.address), b"\0")
    inverted = 0x08 | 0x02
    names = b"lo".ljust(16, b"\0") + b"veth+".ljust(16, b"\0")
    masks = (b"\xff" * 3).ljust(16, b"\0") + (b"\xff" * 4).ljust(16, b"\0")
    numbers = struct.pack("=HBB", 17, 2, inverted) if family == IPV4 else struct.pack("=HBBB3x", 17, 0, 5, inverted)
    fields = network.address + network.address + mask + mask + names + masks + numbers
    assert (
        entry == fields + b"ISTI" + struct.pack("=HH", size, size + 40) + bytes(size - len(fields) - 8) + entry[size:]
    )


def test_ports_of_both_sides_share_a_match() -> None:
    matches = (Protocol(UDP), SourcePorts(PORT), DestinationPorts(PortRange(1, 2)), DestinationPorts(PORT))
    names = [name for _, name, _ in extensions(Rule(matches, RETURN), IPV4)]
    assert names == ["udp", "udp"]


def test_extensions_of_a_rule() -> None:
    rule = Rule((Protocol(TCP), DestinationPorts(PORT), Comment("")), Tproxy(1, bytes(4), 0))
    assert [*extensions(rule, IPV4)] == [("match", "tcp", 0), ("match", "comment", 0), ("target", "TPROXY", 1)]
    assert [*extensions(Rule((), RETURN), IPV6)] == []


# What is read of things that others write


def element(name: str, revision: int, data: bytes) -> bytes:
    return struct.pack("=H29sB", 32 + len(data), name.encode(), revision) + data


def entry_of(family: Family, matches: bytes = b"", target: bytes = b"", fields: bytes = b"") -> bytes:
    """An entry that somebody else wrote, in the form of `pack`."""
    layout = LAYOUTS[family]
    target = target or element("RETURN", 0, bytes(8))
    at = layout.size + len(matches)
    header = fields.ljust(layout.struct.size, b"\0") + bytes(4) + struct.pack("=HH", at, at + len(target))
    return header.ljust(layout.size, b"\0") + matches + target


@pytest.mark.parametrize("target", [SaveMark(1, 2), RestoreMark(1, 2)])
def test_older_connmark_reads_as_the_same(target: SaveMark | RestoreMark) -> None:
    mode = 1 if isinstance(target, SaveMark) else 2
    older = element("CONNMARK", 1, struct.pack("=IIIB3x", 0, 2, 1, mode))
    assert unpack(entry_of(IPV4, target=older), IPV4, is_standard=False) == Rule((), target)


@pytest.mark.parametrize(
    ("name", "revision", "data"),
    [
        ("tcp", 0, struct.pack("=4H4B4x", 0, 65535, 0, 65535, 0, 0, 0, 0)),  # asks nothing
        ("tcp", 0, struct.pack("=4H4B4x", 0, 65535, 80, 80, 0, 2, 2, 0)),  # asks for flags
        ("udp", 0, struct.pack("=4HB7x", 0, 65535, 80, 80, 0)),  # of another protocol
        ("tcp", 1, struct.pack("=4H4B4x", 0, 65535, 80, 80, 0, 0, 0, 0)),
        ("owner", 1, struct.pack("=4IBB6x", 1, 1, 2, 2, 3, 0)),  # both of uid and gid
        ("owner", 1, struct.pack("=4IBB6x", 1, 1, 0, 0, 4, 0)),  # whether there is a socket
        ("conntrack", 3, struct.pack("=146x3H16x", 1 << 13, 0, 2)),  # -m state
        ("conntrack", 3, struct.pack("=146x3H16x", 1 | 1 << 12, 0, 2)),  # a direction, too
        ("conntrack", 3, struct.pack("=146x3H16x", 1, 0, 512)),  # a state to come
        ("multiport", 1, struct.pack("=BBH28x15BB", 1, 1, 80, 1, *[0] * 14, 0)),  # a range without an end
        ("multiport", 1, struct.pack("=BB46x", 1, 0)),
        ("multiport", 1, struct.pack("=BB46x", 3, 1)),
        ("multiport", 1, struct.pack("=BB46x", 1, 200)),
        ("comment", 0, b"x" * 256),
        ("mark", 0, struct.pack("=QQB7x", 1, 1, 0)),
        ("mark", 1, struct.pack("=IIB15x", 1, 1, 0)),
    ],
)
def test_a_match_that_says_more_stays_unknown(name: str, revision: int, data: bytes) -> None:
    fields = struct.pack("=80xHBB", TCP, 0, 0)
    rule = unpack(entry_of(IPV4, element(name, revision, data), fields=fields), IPV4, is_standard=True)
    assert rule == Rule((Protocol(TCP), UnknownMatch(name, revision, data)), RETURN)
    assert not rule.ours


@pytest.mark.parametrize(
    ("name", "revision", "data"),
    [
        ("REDIRECT", 0, struct.pack("=IIII4B4x", 1, 0, 0, 0, 0, 0, 0, 0)),  # the port as it is
        ("REDIRECT", 0, struct.pack("=IIII4B4x", 1, 2 | 4, 0, 0, 0, 1, 0, 1)),  # --random
        ("REDIRECT", 0, struct.pack("=I16x16x4B", 2, 0, 80, 0, 80)),  # IPv6's
        ("CT", 2, struct.pack("=HHII16s32s4xQ", 1, 0, 0, 0, b"", b"", 0)),  # --notrack
        ("CT", 2, struct.pack("=HHII16s32s4xQ", 0, 1, 0, 0, b"ftp", b"", 0)),
        ("CONNMARK", 2, struct.pack("=IIIBBBx", 7, 1, 1, 0, 0, 0)),  # --set-xmark
        ("CONNMARK", 2, struct.pack("=IIIBBBx", 0, 1, 1, 0, 3, 1)),  # shifts
        ("MARK", 1, struct.pack("=QB7x", 1, 0)),
        ("REJECT", 0, bytes(8)),  # as large as a verdict
        ("ACCEPT", 0, bytes(8)),
        ("TPROXY", 1, struct.pack("=II16sBB6x", 4, 3, bytes(range(16)), 0, 80)),  # IPv6's address
    ],
)
def test_a_target_that_says_more_stays_unknown(name: str, revision: int, data: bytes) -> None:
    rule = unpack(entry_of(IPV4, target=element(name, revision, data)), IPV4, is_standard=False)
    assert rule == Rule((), UnknownTarget(name, revision, data))


def header4(numbers: bytes = bytes(4), **places: bytes) -> bytes:
    """IPv4's fields, all zero but for those given."""
    at = {"source": 0, "source_mask": 8, "name": 16, "mask": 48}
    fields = bytearray(80)
    for place, value in places.items():
        fields[at[place] : at[place] + len(value)] = value
    return bytes(fields) + numbers


@pytest.mark.parametrize(
    "fields",
    [
        header4(source=b"\x0a\0\0\1", source_mask=b"\xff\0\0\xff"),  # a mask with a gap
        header4(source=b"\x0a\0\0\1", source_mask=b"\xff\0\0\0"),  # an address outside of its mask
        header4(name=b"lo", mask=b"\xff\xff"),  # a prefix without its +
        header4(name=b"eth+", mask=b"\xff" * 5),  # a + that counts
        header4(name=b"eth", mask=b"\1\1\1\1"),  # python-iptables' masks, in IPv6
        header4(name=b"x" * 16, mask=b"\xff" * 16),
        header4(struct.pack("=HBB", TCP, 1, 0)),  # -f
        header4(struct.pack("=HBB", TCP, 2, 0)),  # a goto that goes nowhere
        header4(struct.pack("=HBB", TCP, 0, 0x20)),
        header4(struct.pack("=HBB", 0, 0, 0x40)),  # not every protocol
    ],
)
def test_a_header_that_says_more_stays_whole(fields: bytes) -> None:
    entry = entry_of(IPV4, element("mark", 1, struct.pack("=IIB7x", 1, 1, 0)), fields=fields)
    rule = unpack(entry, IPV4, is_standard=True)
    assert rule == Rule((UnknownMatch(HEADER, 0, fields), Mark(1, 1)), RETURN)
    assert pack(rule, IPV4) == entry[:84] + SIGNATURE + entry[88:]


def test_ports_under_such_a_header_stay_unknown() -> None:
    """The header says of which protocol they are."""
    ports = struct.pack("=4H4B4x", 0, 65535, 80, 80, 0, 0, 0, 0)
    entry = entry_of(IPV4, element("tcp", 0, ports), fields=header4(struct.pack("=HBB", TCP, 1, 0)))
    assert unpack(entry, IPV4, is_standard=True).matches[1] == UnknownMatch("tcp", 0, ports)


def test_rubbish_behind_names_is_none_of_them() -> None:
    """The buffers of libiptc have it; the kernel writes names up to their NUL alone."""
    match = struct.pack("=H29sB", 48, b"mark\0rubbish", 1) + struct.pack("=IIB7x", 1, 1, 0)
    target = struct.pack("=H29sB", 40, b"MARK\0rubbish", 2) + struct.pack("=II", 1, 1)
    assert unpack(entry_of(IPV4, match, target), IPV4, is_standard=False) == Rule((Mark(1, 1),), SetMark(1, 1))


# Whole tables


def filled(own_rule: Rule, others_rule: Rule) -> Table:
    chains = {"ISTIO_OUTPUT": Chain("ISTIO_OUTPUT", (own_rule,)), "OTHER": Chain("OTHER", (others_rule,))}
    return Table("nat", ordered("nat", chains))


def test_known_entries_are_the_very_rules_where_they_are_signed() -> None:
    rule = Rule((Owner("uid", 1, 1),), RETURN, ours=True)
    desired = filled(rule, rule)
    blob = Blob(filled(rule, rule.replace(ours=False)), IPV4)
    expected = {
        name: (chain, pack_chain(chain, IPV4)) for name in ("ISTIO_OUTPUT", "OTHER") if (chain := desired.chain(name))
    }
    read = unpack_table("nat", IPV4, blob.answers, expected)
    own, other = read.chain("ISTIO_OUTPUT"), read.chain("OTHER")
    assert own
    assert own.rules[0] is rule
    assert other
    assert other.rules == (rule,)
    assert not other.rules[0].ours


def test_without_own_the_chains_of_ours_are_empty() -> None:
    rule = Rule((), RETURN)
    table = filled(rule, rule)
    blob = Blob(table, IPV6)
    read = unpack_table("nat", IPV6, blob.answers, own=False)
    assert read == Table(
        "nat", tuple(chain.replace(rules=()) if chain.name in OWN_CHAINS else chain for chain in table.chains)
    )


def test_a_jump_into_the_middle_of_a_chain_stays_unknown() -> None:
    """No iptables writes such; the kernel takes it."""
    blob = Blob(filled(Rule((), RETURN), Rule((), Jump("ISTIO_OUTPUT"))), IPV4)
    jump = struct.pack("=i", blob.starts["ISTIO_OUTPUT"])
    entries = blob.answers[1].replace(jump + bytes(4), struct.pack("=i", blob.starts["ISTIO_OUTPUT"] + 152) + bytes(4))
    read = unpack_table("nat", IPV4, (blob.answers[0], entries)).chain("OTHER")
    assert read
    assert isinstance(read.rules[0].target, UnknownTarget)


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
