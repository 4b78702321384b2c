"""Encodes the matches and targets of every plan as the kernel's structs, which follow the header in an entry.

Each is an xt_entry_match or xt_entry_target (<linux/netfilter/x_tables.h>: u16 size, 29 bytes of name, u8
revision), then the extension's data, padded with zeros to a multiple of 8. Native byte order; addresses and
the ports of NAT and TPROXY in network order. Sizes are those of 64-bit machines.

The other matches and targets are in encode_extension.py, and decoding is in decode_match.py: a plain run loads neither.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

from istio_init.model.rules import IPV4, Jump, Owner, Redirect, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from istio_init.model.extensions import ConnMark, CtState, Mark, Multiport
    from istio_init.model.rules import Family, Target
    from istio_init.model.unknown import Comment, UnknownMatch

    # Matches that are neither in the header, nor of ports, nor of the owner.
    RareMatch: TypeAlias = Multiport | Mark | ConnMark | CtState | Comment | UnknownMatch
    ExtensionMatch: TypeAlias = Owner | RareMatch

HEAD = Struct("=H29sB")
STANDARD_SIZE = 40  # of a standard target: HEAD, then an int of verdict
NAME_LIMIT = 28  # bytes of an extension's or a chain's name; the 29th is its NUL

OWNER_DATA = Struct("=4IBB6x")  # xt_owner_match_info: uid from, to; gid from, to; which, inverted
REDIRECT4_DATA = Struct("=II8x2s2s4x")  # nf_nat_ipv4_multi_range_compat: count, flags, addresses, ports
REDIRECT6_DATA = Struct("=I32x2s2s")  # nf_nat_range: flags, addresses, ports

UID, GID = 1, 2
_PROTO_SPECIFIED = 2  # NF_NAT_RANGE_PROTO_SPECIFIED


def extension(name: str, revision: int, data: bytes) -> bytes:
    """An xt_entry_match or xt_entry_target with this data, padded to a multiple of 8 bytes."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > NAME_LIMIT:
        raise ValueError(f"{name} is longer than {NAME_LIMIT} bytes")
    data += bytes(-len(data) % 8)
    return HEAD.pack(HEAD.size + len(data), encoded, revision) + data


def pack_match(match: ExtensionMatch) -> bytes:
    """Encode a match, the same for both families. ValueError if the struct can't hold the value."""
    if isinstance(match, Owner):
        return extension("owner", 1, _pack_owner(match))
    from istio_init.kernel.xtables.encode_extension import pack_rare_match

    return pack_rare_match(match)


def _pack_owner(match: Owner) -> bytes:
    if match.kind == "uid":
        return OWNER_DATA.pack(match.low, match.high, 0, 0, UID, UID * match.negated)
    return OWNER_DATA.pack(0, 0, match.low, match.high, GID, GID * match.negated)


_standards: dict[str, bytes] = {}


def standard(name: str) -> bytes:
    """Encode a verdict or a jump for libiptc: a standard target with its name, empty for none."""
    packed = _standards.get(name)
    if packed is None:
        packed = _standards[name] = extension(name, 0, bytes(STANDARD_SIZE - HEAD.size))
    return packed


def pack_target(target: Target, family: Family) -> bytes:
    """Encode a target for libiptc. ValueError if the struct can't hold the value."""
    # Kinds are compared as they are: a match statement asks each in turn, which takes longer than all else here.
    if type(target) is Jump:
        return standard(target.chain)
    if type(target) is Verdict:
        return standard(target.name)
    if type(target) is Redirect:
        return extension("REDIRECT", 0, _pack_redirect(target, family))
    from istio_init.kernel.xtables.encode_extension import pack_rare_target

    return pack_rare_target(target, family)  # type: ignore[arg-type] # one of these is left


def _pack_redirect(target: Redirect, family: Family) -> bytes:
    low, high = target.ports.low.to_bytes(2, "big"), target.ports.high.to_bytes(2, "big")
    if family == IPV4:
        return REDIRECT4_DATA.pack(1, _PROTO_SPECIFIED, low, high)
    return REDIRECT6_DATA.pack(_PROTO_SPECIFIED, low, high)
