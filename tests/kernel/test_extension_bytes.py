"""The bytes of each extension and of a header, by the kernel's own headers (<linux/netfilter/xt_*.h>)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.kernel.xtables.required_modules import extensions
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
    IPV4,
    IPV6,
    TCP,
    UDP,
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
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from tests.kit.strategies import MATCHES, TARGETS
from tests.kit.xtables_blob import offsets

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Match, Target

PORT = PortRange(80, 80)
RETURN = Verdict("RETURN")


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
