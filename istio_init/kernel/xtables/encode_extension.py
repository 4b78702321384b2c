"""Encodes the matches and targets of model/extensions.py as the kernel's structs; a plain plan has none of them."""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.errors import assert_never
from istio_init.kernel.xtables.encode_match import extension
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
from istio_init.model.rules import IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.kernel.xtables.encode_match import RareMatch
    from istio_init.model.rules import Family
    from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

    RareTarget: TypeAlias = SetMark | Tproxy | SaveMark | RestoreMark | CtZone | UnknownTarget

MULTIPORT_DATA = Struct("=BB15H15BB")  # xt_multiport_v1: side, count, ports, "next is its end" marks, inverted
MARK_DATA = Struct("=IIB7x")  # xt_mark_mtinfo1, xt_connmark_mtinfo1: value, mask, inverted
CONNTRACK_DATA = Struct("=146xHHH16x")  # xt_conntrack_mtinfo3: 146 bytes of other fields, which, inverted, states
COMMENT_DATA = Struct("=256s")  # xt_comment_info
TPROXY_DATA = Struct("=II16s2s6x")  # xt_tproxy_target_info_v1: mask, mark, address, port
SET_MARK_DATA = Struct("=II")  # xt_mark_tginfo2: mark, mask
CONNMARK1_DATA = Struct("=IIIB3x")  # xt_connmark_tginfo1: mark to set, conntrack's mask, packet's mask, mode
CONNMARK2_DATA = Struct("=III2xBx")  # xt_connmark_tginfo2: the same with shifts
CT_DATA = Struct("=2xH68x")  # xt_ct_target_info_v1: flags, zone, events, helper, timeout, kernel's pointer

SIDES: tuple[Literal["sports", "dports", "ports"], ...] = ("sports", "dports", "ports")
MULTIPORT_LIMIT = 15
_STATE = 1
STATE_BITS = dict(zip(CT_STATES, (1, 8, 4, 2, 256, 64, 128), strict=True))
SAVE, RESTORE = 1, 2


def pack_rare_match(match: RareMatch) -> bytes:
    """Encode one of these matches. ValueError if the struct can't hold the value."""
    match match:
        case Multiport():
            return extension("multiport", 1, _pack_multiport(match))
        case Mark():
            return extension("mark", 1, MARK_DATA.pack(match.value, match.mask, match.negated))
        case ConnMark():
            return extension("connmark", 1, MARK_DATA.pack(match.value, match.mask, match.negated))
        case CtState():
            states = sum(STATE_BITS[state] for state in match.states)
            return extension("conntrack", 3, CONNTRACK_DATA.pack(_STATE, _STATE * match.negated, states))
        case _:
            return _pack_foreign_match(match)


def _pack_foreign_match(match: Comment | UnknownMatch) -> bytes:
    """Encode a match that no Istio rule has; its module is imported only here."""
    from istio_init.model.unknown import Comment, UnknownMatch

    match match:
        case Comment():
            return extension("comment", 0, _pack_comment(match))
        case UnknownMatch():
            return extension(match.name, match.revision, match.data)
        case _:
            assert_never(match)


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
    if not 0 < count <= MULTIPORT_LIMIT:
        raise ValueError(f"a multiport match holds 1 to {MULTIPORT_LIMIT} ports (a range takes two), not {count}")
    unused = [0] * (MULTIPORT_LIMIT - count)
    return MULTIPORT_DATA.pack(SIDES.index(match.side), count, *ports, *unused, *ends, *unused, match.negated)


def _pack_comment(match: Comment) -> bytes:
    encoded = match.text.encode(errors="surrogateescape")
    if len(encoded) >= COMMENT_DATA.size or b"\0" in encoded:
        raise ValueError(f"a comment holds up to {COMMENT_DATA.size - 1} bytes, none of them zero")
    return COMMENT_DATA.pack(encoded)


def pack_rare_target(target: RareTarget, family: Family) -> bytes:
    """Encode one of these targets as libiptc takes it. ValueError if the struct can't hold the value."""
    match target:
        case CtZone():  # first, as it is the most frequent
            return extension("CT", 2, CT_DATA.pack(target.zone))
        case SetMark():
            return extension("MARK", 2, SET_MARK_DATA.pack(target.value, target.mask))
        case Tproxy():
            return extension("TPROXY", 1, _pack_tproxy(target, family))
        case SaveMark():
            return extension("CONNMARK", 2, CONNMARK2_DATA.pack(0, target.ctmask, target.nfmask, SAVE))
        case RestoreMark():
            return extension("CONNMARK", 2, CONNMARK2_DATA.pack(0, target.ctmask, target.nfmask, RESTORE))
        case _:  # an UnknownTarget, by what is left
            return extension(target.name, target.revision, target.data)


def _pack_tproxy(target: Tproxy, family: Family) -> bytes:
    if len(target.address) != (4 if family == IPV4 else 16):
        raise ValueError(f"TPROXY's address is not one of {family}")
    return TPROXY_DATA.pack(target.mask, target.mark, target.address, target.port.to_bytes(2, "big"))
