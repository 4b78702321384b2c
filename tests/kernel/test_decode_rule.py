"""What is read of entries and tables that others write: nothing is ever read as what it is not."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from istio_init.kernel.xtables.encode_rule import SIGNATURE, pack
from istio_init.kernel.xtables.ip_header import HEADER, LAYOUTS
from istio_init.kernel.xtables.pack_chain import pack_chain
from istio_init.kernel.xtables.unpack_table import unpack_table
from istio_init.model.extensions import (
    Mark,
    RestoreMark,
    SaveMark,
    SetMark,
)
from istio_init.model.rules import (
    IPV4,
    IPV6,
    OWN_CHAINS,
    TCP,
    Chain,
    Jump,
    Owner,
    Protocol,
    Rule,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from tests.kit.xtables_blob import Blob, unpack

if TYPE_CHECKING:
    from istio_init.model.rules import Family

RETURN = Verdict("RETURN")


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
