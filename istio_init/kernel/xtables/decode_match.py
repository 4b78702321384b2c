"""Decodes the kernel's structs of matches and targets, which encode_match.py and encode_extension.py write.

Decoding never guesses: a struct whose value would not be encoded to the same bytes becomes an UnknownMatch or
UnknownTarget, which hold the bytes.
"""

from __future__ import annotations

from istio_init.kernel.xtables.encode_extension import (
    COMMENT_DATA,
    CONNMARK1_DATA,
    CONNMARK2_DATA,
    CONNTRACK_DATA,
    CT_DATA,
    MARK_DATA,
    MULTIPORT_DATA,
    MULTIPORT_LIMIT,
    RESTORE,
    SAVE,
    SET_MARK_DATA,
    SIDES,
    STATE_BITS,
    TPROXY_DATA,
)
from istio_init.kernel.xtables.encode_match import (
    HEAD,
    OWNER_DATA,
    REDIRECT4_DATA,
    REDIRECT6_DATA,
    UID,
    pack_match,
    pack_target,
)
from istio_init.model.extensions import (
    CT_STATES,
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
from istio_init.model.rules import IPV4, Jump, Owner, PortRange, Redirect, Verdict
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _struct import Struct
    from collections.abc import Callable

    from istio_init.kernel.xtables.encode_match import ExtensionMatch
    from istio_init.model.rules import Family, Match, Target


def unpack_match(element: bytes, family: Family = IPV4) -> Match:
    """Decode an xt_entry_match; an UnknownMatch if no other kind can express it."""
    name, revision, data = named(element)
    if entry := _MATCHES.get((name, revision, len(data))):
        layout, read = entry
        match = read(*layout.unpack(data))
        if match is not None and pack_match(match)[HEAD.size :] == data:
            return match
    from istio_init.kernel.xtables.foreign_options import match_options

    return UnknownMatch(name, revision, data, match_options(name, revision, data, family))


def _read_owner(*fields: int) -> Owner:
    uid_low, uid_high, gid_low, gid_high, which, inverted = fields
    if which == UID:
        return Owner("uid", uid_low, uid_high, bool(inverted))
    return Owner("gid", gid_low, gid_high, bool(inverted))


def _read_multiport(side: int, count: int, *fields: int) -> Multiport | None:
    if side >= len(SIDES) or not 0 < count <= MULTIPORT_LIMIT:
        return None
    ports: list[PortRange] = []
    opens_range = False
    for port, low in zip(fields[:count], fields[MULTIPORT_LIMIT:], strict=False):
        if opens_range:
            ports[-1] = PortRange(ports[-1].low, port)
        else:
            ports.append(PortRange(port, port))
        opens_range = bool(low)
    return Multiport(SIDES[side], tuple(ports), bool(fields[-1]))


def _read_mark(value: int, mask: int, inverted: int) -> Mark:
    return Mark(value, mask, bool(inverted))


def _read_connmark(value: int, mask: int, inverted: int) -> ConnMark:
    return ConnMark(value, mask, bool(inverted))


def _read_ctstate(_which: int, inverted: int, states: int) -> CtState:
    return CtState(tuple(state for state in CT_STATES if states & STATE_BITS[state]), bool(inverted))


def _read_comment(field: bytes) -> Comment | None:
    text, end, _ = field.partition(b"\0")
    return Comment(text.decode(errors="surrogateescape")) if end else None


# By name, revision and the data's length.
_MATCHES: dict[tuple[str, int, int], tuple[Struct, Callable[..., ExtensionMatch | None]]] = {
    ("owner", 1, OWNER_DATA.size): (OWNER_DATA, _read_owner),
    ("multiport", 1, MULTIPORT_DATA.size): (MULTIPORT_DATA, _read_multiport),
    ("mark", 1, MARK_DATA.size): (MARK_DATA, _read_mark),
    ("connmark", 1, MARK_DATA.size): (MARK_DATA, _read_connmark),
    ("conntrack", 3, CONNTRACK_DATA.size): (CONNTRACK_DATA, _read_ctstate),
    ("comment", 0, COMMENT_DATA.size): (COMMENT_DATA, _read_comment),
}


def unpack_target(element: bytes, family: Family) -> Target:
    """Decode an xt_entry_target that is no verdict or jump; an UnknownTarget if no kind can express it."""
    name, revision, data = named(element)
    if entry := _TARGETS.get((name, revision, len(data))):
        layout, read = entry
        target = read(family, *layout.unpack(data))
        if target is not None and _packed_as(revision, target, family) == data:
            return target
    from istio_init.kernel.xtables.foreign_options import target_options

    return UnknownTarget(name, revision, data, target_options(name, revision, data, family))


def _packed_as(revision: int, target: Target, family: Family) -> bytes:
    """The data of a target as `pack_target` encodes it; CONNMARK's in the given revision."""
    if revision == 1 and isinstance(target, SaveMark | RestoreMark):
        mode = SAVE if isinstance(target, SaveMark) else RESTORE
        return CONNMARK1_DATA.pack(0, target.ctmask, target.nfmask, mode)
    return pack_target(target, family)[HEAD.size :]


def _read_redirect4(_family: Family, _count: int, _flags: int, low: bytes, high: bytes) -> Redirect:
    return Redirect(PortRange(int.from_bytes(low, "big"), int.from_bytes(high, "big")))


def _read_redirect6(_family: Family, _flags: int, low: bytes, high: bytes) -> Redirect:
    return Redirect(PortRange(int.from_bytes(low, "big"), int.from_bytes(high, "big")))


def _read_tproxy(family: Family, mask: int, mark: int, address: bytes, port: bytes) -> Tproxy:
    return Tproxy(int.from_bytes(port, "big"), address[: 4 if family == IPV4 else 16], mark, mask)


def _read_set_mark(_family: Family, mark: int, mask: int) -> SetMark:
    return SetMark(mark, mask)


def _read_connmark_target(_family: Family, _mark: int, ctmask: int, nfmask: int, mode: int) -> Target | None:
    if mode == SAVE:
        return SaveMark(nfmask, ctmask)
    return RestoreMark(nfmask, ctmask) if mode == RESTORE else None


def _read_ct_zone(_family: Family, zone: int) -> CtZone:
    return CtZone(zone)


# By name, revision and the data's length, which tells REDIRECT's two families apart. CONNMARK of revision 1
# is what iptables wrote before 1.8 and Linux 4.16; newer ones print it as unsupported.
_TARGETS: dict[tuple[str, int, int], tuple[Struct, Callable[..., Target | None]]] = {
    ("REDIRECT", 0, REDIRECT4_DATA.size): (REDIRECT4_DATA, _read_redirect4),
    ("REDIRECT", 0, REDIRECT6_DATA.size): (REDIRECT6_DATA, _read_redirect6),
    ("TPROXY", 1, TPROXY_DATA.size): (TPROXY_DATA, _read_tproxy),
    ("MARK", 2, SET_MARK_DATA.size): (SET_MARK_DATA, _read_set_mark),
    ("CONNMARK", 1, CONNMARK1_DATA.size): (CONNMARK1_DATA, _read_connmark_target),
    ("CONNMARK", 2, CONNMARK2_DATA.size): (CONNMARK2_DATA, _read_connmark_target),
    ("CT", 2, CT_DATA.size): (CT_DATA, _read_ct_zone),
}


def named(element: bytes) -> tuple[str, int, bytes]:
    """Name, revision and data of a match or target. Bytes after a name's NUL are undefined in libiptc's buffers."""
    _, field, revision = HEAD.unpack_from(element)
    return field.partition(b"\0")[0].decode(errors="surrogateescape"), revision, element[HEAD.size :]


def unpack_standard(element: bytes, *, goto: bool) -> Verdict | Jump:
    """Decode a target of `standard`; `goto` is a flag in the entry's header."""
    name, _, _ = named(element)
    match name:
        case "ACCEPT" | "DROP" | "RETURN" | "QUEUE" | "":
            return Verdict(name)
        case _:
            return Jump(name, goto)
