"""The kernel's structs of single matches and targets: pack and unpack what follows the entry's own header.

Each is an xt_entry_match or xt_entry_target (<linux/netfilter/x_tables.h>: u16 size, 29 bytes of name, u8
revision), then the extension's data, padded with zeros to a multiple of 8. Native byte order; addresses and
the ports of NAT and TPROXY in network order. Sizes are those of 64-bit machines.

Reading never guesses: whatever does not pack to the very bytes it was read from stays an UnknownMatch or
UnknownTarget, which carry the bytes.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.errors import assert_never
from istio_init.netfilter import (
    CT_STATES,
    IPV4,
    Comment,
    ConnMark,
    CtState,
    CtZone,
    Jump,
    Mark,
    Multiport,
    Owner,
    PortRange,
    Redirect,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
    UnknownMatch,
    UnknownTarget,
    Verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeAlias

    from istio_init.netfilter import Family, Match, Target

    # What a rule may ask beside the header's fields and the ports.
    ExtensionMatch: TypeAlias = Multiport | Owner | Mark | ConnMark | CtState | Comment | UnknownMatch

HEAD = Struct("=H29sB")
STANDARD_SIZE = 40  # of a standard target: HEAD, then an int of verdict
NAME_LIMIT = 28  # bytes of an extension's or a chain's name; the 29th is its NUL

_MULTIPORT_DATA = Struct("=BB15H15BB")  # xt_multiport_v1: side, count, ports, "next is its end" marks, inverted
_OWNER_DATA = Struct("=4IBB6x")  # xt_owner_match_info: uid from, to; gid from, to; which, inverted
_MARK_DATA = Struct("=IIB7x")  # xt_mark_mtinfo1, xt_connmark_mtinfo1: value, mask, inverted
_CONNTRACK_DATA = Struct("=146xHHH16x")  # xt_conntrack_mtinfo3: 146 bytes of others, which, inverted, states
_COMMENT_DATA = Struct("=256s")  # xt_comment_info
_REDIRECT4_DATA = Struct("=II8x2s2s4x")  # nf_nat_ipv4_multi_range_compat: count, flags, addresses, ports
_REDIRECT6_DATA = Struct("=I32x2s2s")  # nf_nat_range: flags, addresses, ports
_TPROXY_DATA = Struct("=II16s2s6x")  # xt_tproxy_target_info_v1: mask, mark, address, port
_SET_MARK_DATA = Struct("=II")  # xt_mark_tginfo2: mark, mask
_CONNMARK1_DATA = Struct("=IIIB3x")  # xt_connmark_tginfo1: mark to set, conntrack's mask, packet's mask, mode
_CONNMARK2_DATA = Struct("=III2xBx")  # xt_connmark_tginfo2: the same with shifts
_CT_DATA = Struct("=2xH68x")  # xt_ct_target_info_v1: flags, zone, events, helper, timeout, kernel's pointer

_SIDES: tuple[Literal["sports", "dports", "ports"], ...] = ("sports", "dports", "ports")
_MULTIPORT_LIMIT = 15
_UID, _GID = 1, 2
_STATE = 1
_STATE_BITS = dict(zip(CT_STATES, (1, 8, 4, 2, 256, 64, 128), strict=True))
_PORTS_GIVEN = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
_SAVE, _RESTORE = 1, 2


class Inexpressible(ValueError):
    """A value that no struct of the kernel can hold."""


def extension(name: str, revision: int, data: bytes) -> bytes:
    """An xt_entry_match or xt_entry_target with this data, padded to a multiple of 8 bytes."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > NAME_LIMIT:
        raise Inexpressible(f"{name} is longer than {NAME_LIMIT} bytes")
    data += bytes(-len(data) % 8)
    return HEAD.pack(HEAD.size + len(data), encoded, revision) + data


def pack_match(match: ExtensionMatch) -> bytes:
    """A match as the kernel's struct, the same for both families. Inexpressible where it has no room for the value."""
    match match:
        case Owner():
            return extension("owner", 1, _pack_owner(match))
        case Multiport():
            return extension("multiport", 1, _pack_multiport(match))
        case Mark():
            return extension("mark", 1, _MARK_DATA.pack(match.value, match.mask, match.negated))
        case ConnMark():
            return extension("connmark", 1, _MARK_DATA.pack(match.value, match.mask, match.negated))
        case CtState():
            states = sum(_STATE_BITS[state] for state in match.states)
            return extension("conntrack", 3, _CONNTRACK_DATA.pack(_STATE, _STATE * match.negated, states))
        case Comment():
            return extension("comment", 0, _pack_comment(match))
        case UnknownMatch():
            return extension(match.name, match.revision, match.data)
        case _:
            assert_never(match)


def _pack_owner(match: Owner) -> bytes:
    if match.kind == "uid":
        return _OWNER_DATA.pack(match.low, match.high, 0, 0, _UID, _UID * match.negated)
    return _OWNER_DATA.pack(0, 0, match.low, match.high, _GID, _GID * match.negated)


def _pack_multiport(match: Multiport) -> bytes:
    ports: list[int] = []
    ends: list[int] = []
    for part in match.ports:
        if part.low == part.high:
            ports.append(part.low)
            ends.append(0)
        else:
            ports += (part.low, part.high)
            ends += (1, 0)
    count = len(ports)
    if not 0 < count <= _MULTIPORT_LIMIT:
        raise Inexpressible(f"a multiport match holds 1 to {_MULTIPORT_LIMIT} ports (a range takes two), not {count}")
    unused = [0] * (_MULTIPORT_LIMIT - count)
    return _MULTIPORT_DATA.pack(_SIDES.index(match.side), count, *ports, *unused, *ends, *unused, match.negated)


def _pack_comment(match: Comment) -> bytes:
    encoded = match.text.encode(errors="surrogateescape")
    if len(encoded) >= _COMMENT_DATA.size or b"\0" in encoded:
        raise Inexpressible(f"a comment holds up to {_COMMENT_DATA.size - 1} bytes, none of them zero")
    return _COMMENT_DATA.pack(encoded)


def unpack_match(element: bytes) -> Match:
    """An xt_entry_match as a value; UnknownMatch where no other holds all that it says."""
    name, revision, data = _parts(element)
    if known := _MATCHES.get((name, revision, len(data))):
        layout, read = known
        match = read(*layout.unpack(data))
        if match is not None and pack_match(match)[HEAD.size :] == data:
            return match
    return UnknownMatch(name, revision, data)


def _parts(element: bytes) -> tuple[str, int, bytes]:
    """Name, revision and data of a match or target; libiptc's buffers have rubbish behind a name's NUL."""
    _, field, revision = HEAD.unpack_from(element)
    return field.partition(b"\0")[0].decode(errors="surrogateescape"), revision, element[HEAD.size :]


def _read_owner(*fields: int) -> Owner:
    uid_low, uid_high, gid_low, gid_high, which, inverted = fields
    if which == _UID:
        return Owner("uid", uid_low, uid_high, bool(inverted))
    return Owner("gid", gid_low, gid_high, bool(inverted))


def _read_multiport(side: int, count: int, *fields: int) -> Multiport | None:
    if side >= len(_SIDES) or not 0 < count <= _MULTIPORT_LIMIT:
        return None
    ports: list[PortRange] = []
    opens_range = False
    for port, low in zip(fields[:count], fields[_MULTIPORT_LIMIT:], strict=False):
        if opens_range:
            ports[-1] = PortRange(ports[-1].low, port)
        else:
            ports.append(PortRange(port, port))
        opens_range = bool(low)
    return Multiport(_SIDES[side], tuple(ports), bool(fields[-1]))


def _read_mark(value: int, mask: int, inverted: int) -> Mark:
    return Mark(value, mask, bool(inverted))


def _read_connmark(value: int, mask: int, inverted: int) -> ConnMark:
    return ConnMark(value, mask, bool(inverted))


def _read_ctstate(_which: int, inverted: int, states: int) -> CtState:
    return CtState(tuple(state for state in CT_STATES if states & _STATE_BITS[state]), bool(inverted))


def _read_comment(field: bytes) -> Comment | None:
    text, end, _ = field.partition(b"\0")
    return Comment(text.decode(errors="surrogateescape")) if end else None


# By name, revision and the data's length.
_MATCHES: dict[tuple[str, int, int], tuple[Struct, Callable[..., ExtensionMatch | None]]] = {
    ("owner", 1, _OWNER_DATA.size): (_OWNER_DATA, _read_owner),
    ("multiport", 1, _MULTIPORT_DATA.size): (_MULTIPORT_DATA, _read_multiport),
    ("mark", 1, _MARK_DATA.size): (_MARK_DATA, _read_mark),
    ("connmark", 1, _MARK_DATA.size): (_MARK_DATA, _read_connmark),
    ("conntrack", 3, _CONNTRACK_DATA.size): (_CONNTRACK_DATA, _read_ctstate),
    ("comment", 0, _COMMENT_DATA.size): (_COMMENT_DATA, _read_comment),
}


_standards: dict[str, bytes] = {}


def standard(name: str) -> bytes:
    """A verdict or a jump as libiptc takes and resolves it: a standard target that bears its name, empty for none."""
    packed = _standards.get(name)
    if packed is None:
        packed = _standards[name] = extension(name, 0, bytes(STANDARD_SIZE - HEAD.size))
    return packed


def pack_target(target: Target, family: Family) -> bytes:
    """A target as libiptc takes it. Inexpressible where the struct has no room for the value."""
    match target:
        case Verdict():
            return standard(target.name)
        case Jump():
            return standard(target.chain)
        case Redirect():
            return extension("REDIRECT", 0, _pack_redirect(target, family))
        case SetMark():
            return extension("MARK", 2, _SET_MARK_DATA.pack(target.value, target.mask))
        case Tproxy():
            return extension("TPROXY", 1, _pack_tproxy(target, family))
        case SaveMark():
            return extension("CONNMARK", 2, _CONNMARK2_DATA.pack(0, target.ctmask, target.nfmask, _SAVE))
        case RestoreMark():
            return extension("CONNMARK", 2, _CONNMARK2_DATA.pack(0, target.ctmask, target.nfmask, _RESTORE))
        case CtZone():
            return extension("CT", 2, _CT_DATA.pack(target.zone))
        case UnknownTarget():
            return extension(target.name, target.revision, target.data)
        case _:
            assert_never(target)


def _pack_redirect(target: Redirect, family: Family) -> bytes:
    low, high = target.ports.low.to_bytes(2, "big"), target.ports.high.to_bytes(2, "big")
    if family == IPV4:
        return _REDIRECT4_DATA.pack(1, _PORTS_GIVEN, low, high)
    return _REDIRECT6_DATA.pack(_PORTS_GIVEN, low, high)


def _pack_tproxy(target: Tproxy, family: Family) -> bytes:
    if len(target.address) != (4 if family == IPV4 else 16):
        raise Inexpressible(f"TPROXY's address is not one of {family}")
    return _TPROXY_DATA.pack(target.mask, target.mark, target.address, target.port.to_bytes(2, "big"))


def unpack_standard(element: bytes, *, goto: bool) -> Verdict | Jump:
    """What a target made by `standard` says; `goto` is a flag of the entry's header."""
    name, _, _ = _parts(element)
    match name:
        case "ACCEPT" | "DROP" | "RETURN" | "QUEUE" | "":
            return Verdict(name)
        case _:
            return Jump(name, goto)


def unpack_target(element: bytes, family: Family) -> Target:
    """Any other xt_entry_target as a value; UnknownTarget where no kind holds all that it says."""
    name, revision, data = _parts(element)
    if known := _TARGETS.get((name, revision, len(data))):
        layout, read = known
        target = read(family, *layout.unpack(data))
        if target is not None and _packed_as(revision, target, family) == data:
            return target
    return UnknownTarget(name, revision, data)


def _packed_as(revision: int, target: Target, family: Family) -> bytes:
    """The data of a target as `pack_target` makes it, but CONNMARK's in the revision asked for."""
    if revision == 1 and isinstance(target, SaveMark | RestoreMark):
        mode = _SAVE if isinstance(target, SaveMark) else _RESTORE
        return _CONNMARK1_DATA.pack(0, target.ctmask, target.nfmask, mode)
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
    if mode == _SAVE:
        return SaveMark(nfmask, ctmask)
    return RestoreMark(nfmask, ctmask) if mode == _RESTORE else None


def _read_ct_zone(_family: Family, zone: int) -> CtZone:
    return CtZone(zone)


# By name, revision and the data's length, which tells REDIRECT's two families apart. CONNMARK of revision 1
# is what iptables wrote before 1.8 and Linux 4.16; newer ones print it as unsupported.
_TARGETS: dict[tuple[str, int, int], tuple[Struct, Callable[..., Target | None]]] = {
    ("REDIRECT", 0, _REDIRECT4_DATA.size): (_REDIRECT4_DATA, _read_redirect4),
    ("REDIRECT", 0, _REDIRECT6_DATA.size): (_REDIRECT6_DATA, _read_redirect6),
    ("TPROXY", 1, _TPROXY_DATA.size): (_TPROXY_DATA, _read_tproxy),
    ("MARK", 2, _SET_MARK_DATA.size): (_SET_MARK_DATA, _read_set_mark),
    ("CONNMARK", 1, _CONNMARK1_DATA.size): (_CONNMARK1_DATA, _read_connmark_target),
    ("CONNMARK", 2, _CONNMARK2_DATA.size): (_CONNMARK2_DATA, _read_connmark_target),
    ("CT", 2, _CT_DATA.size): (_CT_DATA, _read_ct_zone),
}
