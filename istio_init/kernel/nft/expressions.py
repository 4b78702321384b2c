"""Expressions of nftables' rules as netlink attributes, for iptables-nft's tables and for native ones.

The layouts are those of <linux/netfilter/nf_tables.h> and nf_tables_compat.h: numbers in network order, values to
compare as the packet or the kernel has them. Attributes are in the order in which nft sends them.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import text, word

# User data of a type that no program uses: the signature of this program's rules. The kernel keeps it, no program
# prints it.
SIGNATURE = bytes((0x7F, 4)) + b"ISTI"

EXPRESSIONS, COMPAT, USERDATA = 4, 5, 7  # NFTA_RULE_*
ELEMENT, EXPRESSION_NAME, EXPRESSION_DATA = 1, 1, 2
NESTED = 0x8000
REGISTER = 1
IIFNAME, OIFNAME, SKUID, SKGID, NFPROTO, L4PROTO, MARK = 6, 7, 10, 11, 15, 16, 3  # NFT_META_*
CT_STATE, CT_MARK, CT_ZONE = 0, 3, 17  # NFT_CT_*
NETWORK, TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
EQUAL, UNEQUAL, AT_MOST, AT_LEAST = 0, 1, 3, 5  # NFT_CMP_*
ACCEPT, DROP, QUEUE, JUMP, GOTO, RETURN = 1, 0, 3, -3, -4, -5
VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "QUEUE": QUEUE, "RETURN": RETURN}
NATIVE = Struct("=I")

# By the size of an address: where the header has source and destination.
SOURCE_AT = {4: 12, 16: 8}
DESTINATION_AT = {4: 16, 16: 24}

# The name of a match that holds unknown expressions, in order and as the kernel has them; never an extension's name.
UNREAD = "nf_tables"

_INVERT = 1  # NFT_LOOKUP_F_INV
_TO_NETWORK_ORDER = 1  # NFT_BYTEORDER_HTON

# Rules have many of these in common: each is made once.
_made: dict[tuple[object, ...], bytes] = {}


def nest(kind: int, value: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, value)


def expression(name: str, data: bytes) -> bytes:
    """One element of a rule's list of expressions."""
    return nest(ELEMENT, text(EXPRESSION_NAME, name) + nest(EXPRESSION_DATA, data))


def load_meta(key: int) -> bytes:
    """Load a property of the packet."""
    known = _made.get(("meta", key))
    if known is None:
        known = _made["meta", key] = expression("meta", word(2, key) + word(1, REGISTER))
    return known


def load_ct(key: int) -> bytes:
    """Load a property of the packet's connection."""
    return expression("ct", word(2, key) + word(1, REGISTER))


def load_payload(base: int, offset: int, length: int) -> bytes:
    """Load bytes of the packet's header."""
    known = _made.get((base, offset, length))
    if known is None:
        facts = word(1, REGISTER) + word(2, base) + word(3, offset) + word(4, length)
        known = _made[base, offset, length] = expression("payload", facts)
    return known


def mask(bits: bytes) -> bytes:
    """Keep these bits of what is loaded."""
    operands = nest(4, attribute(1, bits)) + nest(5, attribute(1, bytes(len(bits))))
    return expression("bitwise", word(1, REGISTER) + word(2, REGISTER) + word(3, len(bits)) + operands)


def to_network_order() -> bytes:
    """Turn a loaded number of 32 bits into network order, in which the kernel can compare greater and less."""
    return expression(
        "byteorder",
        word(1, REGISTER) + word(2, REGISTER) + word(3, _TO_NETWORK_ORDER) + word(4, 4) + word(5, 4),
    )


def compare(value: bytes, *, negated: bool = False, operator: int = EQUAL) -> bytes:
    """Continue if what is loaded equals a value, or compares with it by another operator."""
    operator = UNEQUAL if negated else operator
    return expression("cmp", word(1, REGISTER) + word(2, operator) + nest(3, attribute(1, value)))


def compare_range(low: bytes, high: bytes, *, negated: bool) -> bytes:
    """Continue if what is loaded is in a range, or outside of it."""
    limits = nest(3, attribute(1, low)) + nest(4, attribute(1, high))
    return expression("range", word(1, REGISTER) + word(2, UNEQUAL if negated else EQUAL) + limits)


def look_up(name: str, number: int, *, negated: bool) -> bytes:
    """Continue if what is loaded is in a set, which this batch makes by the same number."""
    inverted = word(5, _INVERT) if negated else b""
    return expression("lookup", word(2, REGISTER) + text(1, name) + word(4, number) + inverted)


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule with a verdict, or continue in a chain."""
    data = word(1, code) + (text(2, chain) if chain else b"")
    return expression("immediate", word(1, 0) + nest(2, nest(2, data)))


def load_data(value: bytes, register: int = REGISTER) -> bytes:
    """Load a constant, for the expression after it."""
    return expression("immediate", word(1, register) + nest(2, attribute(1, value)))


def set_meta(key: int) -> bytes:
    """Change a property of the packet to what is loaded."""
    return expression("meta", word(2, key) + word(3, REGISTER))


def set_ct(key: int) -> bytes:
    """Change a property of the packet's connection to what is loaded."""
    return expression("ct", word(2, key) + word(4, REGISTER))
