"""Expressions of nftables' rules as netlink attributes, for iptables-nft's tables and for native ones.

The layouts are those of <linux/netfilter/nf_tables.h> and nf_tables_compat.h: numbers in network order, values to
compare as the packet or the kernel has them. Attributes are spelled as the kernel dumps them (its order, its defaults,
no NLA_F_NESTED, which nf_tables does not look at), so that a rule that was written can be compared with the kernel's
byte by byte.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import text, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# User data of a type that no program uses: the signature of this program's rules. The kernel keeps it, no program
# prints it.
SIGNATURE = bytes((0x7F, 4)) + b"ISTI"

EXPRESSIONS, COMPAT, USERDATA = 4, 5, 7  # NFTA_RULE_*
ELEMENT, EXPRESSION_NAME, EXPRESSION_DATA = 1, 1, 2
REGISTER = 1
IIFNAME, OIFNAME, SKUID, SKGID, NFPROTO, L4PROTO, MARK = 6, 7, 10, 11, 15, 16, 3  # NFT_META_*
CT_STATE, CT_MARK, CT_ZONE = 0, 3, 17  # NFT_CT_*
NETWORK, TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
EQUAL, UNEQUAL, AT_MOST, ABOVE, AT_LEAST = 0, 1, 3, 4, 5  # NFT_CMP_*
ACCEPT, DROP, QUEUE, JUMP, GOTO, RETURN = 1, 0, 3, -3, -4, -5
VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "QUEUE": QUEUE, "RETURN": RETURN}
NATIVE = Struct("=I")

# By the size of an address: where the header has source and destination.
SOURCE_AT = {4: 12, 16: 8}
DESTINATION_AT = {4: 16, 16: 24}

# How the names of matches and targets begin that hold unknown expressions, in order and as the kernel has them; never
# an extension's name. Behind it are the expressions' kinds.
UNREAD = "nf_tables"

_INVERT = 1  # NFT_LOOKUP_F_INV
_TO_NETWORK_ORDER = 1  # NFT_BYTEORDER_HTON
_PROTO_SPECIFIED = 2  # NF_NAT_RANGE_PROTO_SPECIFIED

# Rules have many loads in common: each is made once. Comparisons and constants differ in their last bytes alone: what
# is before them is made once for each kind and length.
_loads: dict[tuple[object, ...], bytes] = {}
_heads: dict[tuple[object, ...], bytes] = {}


def expression(name: str, data: bytes) -> bytes:
    """One element of a rule's list of expressions."""
    return attribute(ELEMENT, text(EXPRESSION_NAME, name) + attribute(EXPRESSION_DATA, data))


def _ending_in(value: bytes, key: tuple[object, ...], make: Callable[[bytes], bytes]) -> bytes:
    """The expression that `make` makes of a value, which is its end; `key` tells it from others."""
    padding = bytes(-len(value) % 4)
    key = (*key, len(value))
    head = _heads.get(key)
    if head is None:
        head = _heads[key] = make(value)[: -len(value + padding)]
    return head + value + padding


def load_meta(key: int) -> bytes:
    """Load a property of the packet."""
    load = _loads.get(("meta", key))
    if load is None:
        load = _loads["meta", key] = expression("meta", word(2, key) + word(1, REGISTER))
    return load


def load_ct(key: int) -> bytes:
    """Load a property of the packet's connection."""
    return expression("ct", word(1, REGISTER) + word(2, key))


def load_payload(base: int, offset: int, length: int) -> bytes:
    """Load bytes of the packet's header."""
    load = _loads.get((base, offset, length))
    if load is None:
        facts = word(1, REGISTER) + word(2, base) + word(3, offset) + word(4, length)
        load = _loads[base, offset, length] = expression("payload", facts)
    return load


def mask(bits: bytes) -> bytes:
    """Keep these bits of what is loaded."""
    operands = attribute(4, attribute(1, bits)) + attribute(5, attribute(1, bytes(len(bits))))
    return expression("bitwise", word(1, REGISTER) + word(2, REGISTER) + word(3, len(bits)) + word(6, 0) + operands)


def to_network_order() -> bytes:
    """Turn a loaded number of 32 bits into network order, in which the kernel can compare greater and less."""
    facts = word(1, REGISTER) + word(2, REGISTER) + word(3, _TO_NETWORK_ORDER) + word(4, 4) + word(5, 4)
    return expression("byteorder", facts)


def compare(value: bytes, *, negated: bool = False, operator: int = EQUAL) -> bytes:
    """Continue if what is loaded equals a value, or compares with it by another operator."""
    operator = UNEQUAL if negated else operator

    def make(value: bytes) -> bytes:
        return expression("cmp", word(1, REGISTER) + word(2, operator) + attribute(3, attribute(1, value)))

    return _ending_in(value, ("cmp", operator), make)


def compare_range(low: bytes, high: bytes, *, negated: bool) -> bytes:
    """Continue if what is loaded is in a range, or outside of it."""
    limits = attribute(3, attribute(1, low)) + attribute(4, attribute(1, high))
    return expression("range", word(1, REGISTER) + word(2, UNEQUAL if negated else EQUAL) + limits)


def look_up(name: str, *, negated: bool, number: int = 0) -> bytes:
    """Continue if what is loaded is in a set, or not in it.

    A message that is sent also names the set by the `number` that it has in the batch; the kernel dumps none.
    """
    facts = text(1, name) + word(2, REGISTER) + word(5, _INVERT if negated else 0)
    return expression("lookup", facts + (word(4, number) if number else b""))


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule with a verdict, or continue in a chain."""

    def make(name: bytes) -> bytes:
        data = word(1, code) + (attribute(2, name) if chain else b"")
        return expression("immediate", word(1, 0) + attribute(2, attribute(2, data)))

    if not chain:
        packed = _loads.get(("verdict", code))
        if packed is None:
            packed = _loads["verdict", code] = make(b"")
        return packed
    return _ending_in(chain.encode(errors="surrogateescape") + b"\0", ("jump", code), make)


def load_data(value: bytes, register: int = REGISTER) -> bytes:
    """Load a constant, for the expression after it."""
    return expression("immediate", word(1, register) + attribute(2, attribute(1, value)))


def set_meta(key: int) -> bytes:
    """Change a property of the packet to what is loaded."""
    return expression("meta", word(2, key) + word(3, REGISTER))


def set_ct(key: int) -> bytes:
    """Change a property of the packet's connection to what is loaded."""
    return expression("ct", word(4, REGISTER) + word(2, key))


def redirect(low: bytes, high: bytes) -> bytes:
    """Redirect the connection to a port of this machine, or to one of a range."""
    last = REGISTER if low == high else REGISTER + 1
    ports = load_data(low) if low == high else load_data(low) + load_data(high, last)
    return ports + expression("redir", word(1, REGISTER) + word(2, last) + word(3, _PROTO_SPECIFIED))
