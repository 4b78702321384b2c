"""Expressions of the matches and targets that a plan without TPROXY and DNS capture does not have."""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.errors import InitError, shown
from istio_init.kernel.netlink.nfnetlink import word
from istio_init.kernel.nft.expressions import (
    CT_MARK,
    CT_STATE,
    CT_ZONE,
    MARK,
    NATIVE,
    VERDICTS,
    compare,
    expression,
    load_ct,
    load_data,
    load_meta,
    mask,
    set_ct,
    set_meta,
    verdict,
)
from istio_init.model.extensions import (
    ConnMark,
    CtState,
    CtZone,
    Mark,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.inet import Addresses, Ports
    from istio_init.model.rules import InInterface, OutInterface, Owner, Protocol
    from istio_init.model.unknown import UnknownMatch, UnknownTarget

ALL_BITS = 0xFFFFFFFF
# <linux/netfilter/nf_conntrack_common.h>: NF_CT_STATE_*_BIT.
STATES = {"INVALID": 1, "ESTABLISHED": 2, "RELATED": 4, "NEW": 8, "UNTRACKED": 64}
# By the size of an address, <linux/netfilter.h>: NFPROTO_*.
FAMILY_BY_SIZE = {4: 2, 16: 10}
_ZONE = Struct("=H")
COMMENT = 0  # <libnftnl/udata.h>: NFTNL_UDATA_RULE_COMMENT


def comment(text: str) -> bytes:
    """User data of a rule that nft prints as its comment."""
    encoded = text.encode(errors="surrogateescape") + b"\0"
    return bytes((COMMENT, len(encoded))) + encoded


def match_expressions(
    match: Mark | ConnMark | CtState | UnknownMatch | InInterface | OutInterface | Addresses | Protocol | Ports | Owner,
) -> bytes:
    """The expressions of a match that native_encode.py does not know."""
    match match:
        case Mark():
            return load_meta(MARK) + _mark(match)
        case ConnMark():
            return load_ct(CT_MARK) + _mark(match)
        case CtState():
            bits = sum(bit for state, bit in STATES.items() if state in match.states)
            return load_ct(CT_STATE) + mask(NATIVE.pack(bits)) + compare(bytes(4), negated=True)
        case _:
            from istio_init.model.unknown import UnknownMatch

            if not isinstance(match, UnknownMatch):
                raise TypeError(f"{match!r} is not a rare match")
            return match.data


def _mark(match: Mark | ConnMark) -> bytes:
    masked = b"" if match.mask == ALL_BITS else mask(NATIVE.pack(match.mask))
    return masked + compare(NATIVE.pack(match.value), negated=match.negated)


def target_expressions(
    target: Tproxy | SetMark | SaveMark | RestoreMark | CtZone | UnknownTarget,
) -> bytes:
    """The expressions of a target that native_encode.py does not know. InitError if nftables has none for it."""
    match target:
        case Tproxy():
            return _tproxy(target)
        case SetMark():
            _require_whole(target, target.mask)
            return load_data(NATIVE.pack(target.value)) + set_meta(MARK)
        case SaveMark():
            _require_whole(target, target.nfmask, target.ctmask)
            return load_meta(MARK) + set_ct(CT_MARK)
        case RestoreMark():
            _require_whole(target, target.nfmask, target.ctmask)
            return load_ct(CT_MARK) + set_meta(MARK)
        case CtZone():
            return load_data(_ZONE.pack(target.zone)) + set_ct(CT_ZONE)
        case _:
            return target.data


def _tproxy(target: Tproxy) -> bytes:
    """Passes the packet to a transparent socket, marks it, and ends the rules of the hook, as iptables' TPROXY does."""
    _require_whole(target, target.mask)
    if any(target.address):
        raise _inexpressible(target, "only the packet's own address")
    family = word(1, FAMILY_BY_SIZE[len(target.address)])
    redirection = load_data(target.port.to_bytes(2, "big")) + expression("tproxy", family + word(3, 1))
    return redirection + load_data(NATIVE.pack(target.mark)) + set_meta(MARK) + verdict(VERDICTS["ACCEPT"])


def _require_whole(target: Tproxy | SetMark | SaveMark | RestoreMark, *masks: int) -> None:
    if any(bits != ALL_BITS for bits in masks):
        raise _inexpressible(target, "only whole marks")


def _inexpressible(target: Tproxy | SetMark | SaveMark | RestoreMark, what: str) -> InitError:
    return InitError(f"--native-nftables: {shown(repr(target))}: {what} can be written there; leave the flag out")
