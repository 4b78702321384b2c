"""Inet tables as messages of nftables' netlink batch: tables, chains, sets with their elements, rules.

What the kernel then holds is what `nft -f` makes of the text of a dry run (formats/nft/listing.py), including the user
data by which nft prints intervals; integration tests compare both.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.errors import InitError, KernelError, assert_never, shown
from istio_init.formats.nft.layout import stored
from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELTABLE,
    NEWCHAIN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
    NFPROTO_INET,
    NFT_NAME,
    NLM_F_APPEND,
    NLM_F_CREATE,
    RULE_CHAIN,
    SET_NAME,
    body,
    text,
    word,
)
from istio_init.kernel.nft.expressions import (
    AT_LEAST,
    AT_MOST,
    CT_MARK,
    CT_STATE,
    CT_ZONE,
    DESTINATION_AT,
    EXPRESSIONS,
    GOTO,
    IIFNAME,
    JUMP,
    L4PROTO,
    MARK,
    NATIVE,
    NETWORK,
    NFPROTO,
    OIFNAME,
    SKGID,
    SKUID,
    SOURCE_AT,
    TRANSPORT,
    VERDICTS,
    compare,
    compare_range,
    expression,
    load_ct,
    load_data,
    load_meta,
    load_payload,
    look_up,
    mask,
    nest,
    set_ct,
    set_meta,
    to_network_order,
    verdict,
)
from istio_init.kernel.nft.set_elements import ELEMENT_TYPES, ranged_elements, single_elements
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
from istio_init.model.inet import (
    BASE_CHAINS,
    NAMES,
    Addresses,
    Ports,
    chain_name,
    element_type,
    holds_intervals,
    needs_family_match,
    prefix_length,
    sets,
)
from istio_init.model.rules import (
    IPV4,
    IPV6,
    TCP,
    UDP,
    InInterface,
    Jump,
    OutInterface,
    Owner,
    Protocol,
    Redirect,
    Verdict,
)
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from istio_init.model.inet import InetChain, InetMatch, InetRule, InetTable, Interval
    from istio_init.model.rules import Family, Hook, TableName, Target

    Message: TypeAlias = tuple[int, int, bytes]  # type, flags, body
    # By element type and elements: a set's name in the table, and its number in the batch.
    NumberedSets: TypeAlias = dict[tuple[str, tuple[Interval, ...]], tuple[str, int]]

ALL_BITS = 0xFFFFFFFF
CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 4, 5, 7  # NFTA_CHAIN_*
PORT_GIVEN = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
_ZONE = Struct("=H")
HOOKS: dict[Hook, int] = {"PREROUTING": 0, "OUTPUT": 3}  # <linux/netfilter.h>
FAMILY_NUMBERS: dict[Family, int] = {IPV4: 2, IPV6: 10}
# <linux/netfilter/nf_conntrack_common.h>: NF_CT_STATE_*_BIT.
STATES = {"INVALID": 1, "ESTABLISHED": 2, "RELATED": 4, "NEW": 8, "UNTRACKED": 64}

# NFTA_SET_*, NFTA_SET_ELEM_LIST_*
SET_FLAGS, SET_KEY_TYPE, SET_KEY_LENGTH, SET_DESCRIPTION, SET_ID, SET_USERDATA = 3, 4, 5, 9, 10, 13
ELEMENTS, ELEMENTS_SET_ID = 3, 4
SET_ANONYMOUS, SET_CONSTANT, SET_INTERVAL = 1, 2, 4  # NFT_SET_*
SET_PLAIN_FLAGS = SET_ANONYMOUS | SET_CONSTANT | SET_INTERVAL
# User data of sets as nft keeps it, type, length, value: numbers are in network order (NFTNL_UDATA_SET_KEYBYTEORDER),
# intervals that touch were merged (NFTNL_UDATA_SET_MERGE_ELEMENTS), and of an anonymous set the field that is looked
# up in it (NFTNL_UDATA_SET_KEY_TYPEOF: a payload expression's protocol and field, by nft's own numbers).
_KEY_ORDER = bytes((0, 4)) + NATIVE.pack(2)
_MERGED = bytes((2, 4)) + NATIVE.pack(1)
_PAYLOAD_EXPRESSION = 7
_FIELDS = {
    (TCP, "sport"): (8, 1),
    (TCP, "dport"): (8, 2),
    (UDP, "sport"): (6, 1),
    (UDP, "dport"): (6, 2),
    (IPV4, "saddr"): (12, 11),
    (IPV4, "daddr"): (12, 12),
    (IPV6, "saddr"): (13, 8),
    (IPV6, "daddr"): (13, 9),
}

COUNTER = expression("counter", b"")
# The name of a set that the kernel numbers.
_ANONYMOUS = "__set%d"


class Subject(Record):
    """What a message of a batch is about: a table, a chain or set in it, a rule of a chain by its number from 1."""

    table: str
    name: str = ""
    number: int = 0
    rule: InetRule | None = None


class Batch:
    """Messages that bring inet tables into the kernel; `subjects` has what each is about, for errors."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.subjects: list[Subject] = []
        self._set_number = 0

    def delete(self, name: TableName) -> None:
        """Delete a table with everything in it."""
        self._add(DELTABLE, 0, Subject(NAMES[name]))

    def create(self, table: InetTable) -> None:
        """Create a table that does not exist, as formats.nft.layout.layout() plans it."""
        name = NAMES[table.name]
        self._add(NEWTABLE, NLM_F_CREATE, Subject(name))
        table = stored(table)
        for chain in table.chains:
            self._add(NEWCHAIN, NLM_F_CREATE, Subject(name, chain_name(chain.name)), *_chain_facts(table, chain))
        named = {key: (each, self._set(name, each, *key)) for key, each in sets(table).items()}
        for chain in table.chains:
            head = text(RULE_CHAIN, chain_name(chain.name))
            for number, rule in enumerate(chain.rules, 1):
                subject = Subject(name, chain_name(chain.name), number, rule)
                try:
                    expressions = nest(EXPRESSIONS, self._rule(name, rule, named))
                except OverflowError as error:
                    from istio_init.kernel.nft.native_refusal import describe

                    raise KernelError(f"nftables: {describe(subject)}: no message can hold this: {error}") from error
                self._add(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, subject, head, expressions)

    def _add(self, kind: int, flags: int, subject: Subject, *parts: bytes) -> None:
        self.messages.append((kind, flags, body(NFPROTO_INET, text(NFT_NAME, subject.table), *parts)))
        self.subjects.append(subject)

    def _rule(self, table: str, rule: InetRule, named: NumberedSets) -> bytes:
        """A rule's expressions. A field of a protocol is loaded behind a comparison of the packet's protocol."""
        parts: list[bytes] = []
        compared: set[bytes] = set()
        if needs_family_match(rule):
            parts.append(_family(rule))
        for match in rule.matches:
            if isinstance(match, Ports | Addresses):
                before = _family(rule) if isinstance(match, Addresses) else _transport(match)
                if before not in compared:
                    parts.append(before)
                    compared.add(before)
                parts.append(self._field(table, match, rule, named))
            else:
                parts.append(_match(match))
        return b"".join((*parts, COUNTER, target_expressions(rule.target)))

    def _field(self, table: str, match: Ports | Addresses, rule: InetRule, named: NumberedSets) -> bytes:
        """Loads a port or an address, and compares it with the match's intervals."""
        kind = element_type(match, rule)
        size = ELEMENT_TYPES[kind][1]
        if isinstance(match, Ports):
            base, at = TRANSPORT, 0 if match.side == "sport" else 2
        else:
            base, at = NETWORK, (SOURCE_AT if match.side == "saddr" else DESTINATION_AT)[size]
        if len(match.intervals) == 1:
            return _one_interval(match, base, at, size)
        if (kind, match.intervals) in named:
            name, number = named[kind, match.intervals]
        else:
            field = _FIELDS[match.protocol if isinstance(match, Ports) else rule.family or IPV4, match.side]
            name, number = _ANONYMOUS, self._set(table, _ANONYMOUS, kind, match.intervals, field)
        return load_payload(base, at, size) + look_up(name, number, negated=match.negated)

    def _set(
        self, table: str, name: str, kind: str, intervals: tuple[Interval, ...], field: tuple[int, int] | None = None
    ) -> int:
        """A set and its elements; returns its number. One without a name serves a single rule, which loads `field`."""
        self._set_number += 1
        type_number, size = ELEMENT_TYPES[kind]
        ranged = any(low != high for low, high in intervals) if field else holds_intervals(kind, intervals)
        lists, count = (ranged_elements if ranged else single_elements)(intervals, size)
        facts = [
            text(SET_NAME, name),
            word(SET_FLAGS, (SET_INTERVAL if ranged else 0) | (SET_ANONYMOUS | SET_CONSTANT if field else 0)),
            word(SET_KEY_TYPE, type_number),
            word(SET_KEY_LENGTH, size),
            word(SET_ID, self._set_number),
        ]
        if field:
            userdata = _KEY_ORDER + (_MERGED if ranged else b"") + _type_of(*field)
            facts += [attribute(SET_USERDATA, userdata), nest(SET_DESCRIPTION, word(1, count))]
        else:
            facts.append(attribute(SET_USERDATA, _KEY_ORDER))
        subject = Subject(table, name)
        self._add(NEWSET, NLM_F_CREATE, subject, *facts)
        head = text(SET_NAME, name), word(ELEMENTS_SET_ID, self._set_number)
        for each in lists:
            self._add(NEWSETELEM, NLM_F_CREATE, subject, *head, nest(ELEMENTS, each))
        return self._set_number


def _chain_facts(table: InetTable, chain: InetChain) -> Iterator[bytes]:
    yield text(CHAIN_NAME, chain_name(chain.name))
    for hook, (kind, priority) in BASE_CHAINS[table.name].items():
        if chain.name == hook:
            yield nest(CHAIN_HOOK, word(1, HOOKS[hook]) + word(2, priority))
            yield word(CHAIN_POLICY, 1)  # NF_ACCEPT
            yield text(CHAIN_TYPE, kind)


def _type_of(protocol: int, field: int) -> bytes:
    """User data: the elements of a set are values of this field."""
    numbers = bytes((0, 4)) + NATIVE.pack(protocol) + bytes((1, 4)) + NATIVE.pack(field)
    kind = bytes((0, 4)) + NATIVE.pack(_PAYLOAD_EXPRESSION) + bytes((1, len(numbers))) + numbers
    return bytes((3, len(kind))) + kind


def _family(rule: InetRule) -> bytes:
    return load_meta(NFPROTO) + compare(bytes((FAMILY_NUMBERS[rule.family or IPV4],)))


def _transport(match: Ports) -> bytes:
    if match.protocol not in {TCP, UDP}:
        raise InitError(f"--native-nftables: ports of protocol {match.protocol}: only TCP and UDP ports can be matched")
    return load_meta(L4PROTO) + compare(bytes((match.protocol,)))


def _one_interval(match: Ports | Addresses, base: int, at: int, size: int) -> bytes:
    """Loads a field and compares it with one value, prefix or range."""
    low, high = match.intervals[0]
    first, last = low.to_bytes(size, "big"), high.to_bytes(size, "big")
    if low == high:
        return load_payload(base, at, size) + compare(first, negated=match.negated)
    prefix = None if isinstance(match, Ports) else prefix_length(match.intervals[0], IPV4 if size == 4 else IPV6)
    if prefix is None:
        load = load_payload(base, at, size)
        if match.negated:
            return load + compare_range(first, last, negated=True)
        return load + compare(first, operator=AT_LEAST) + compare(last, operator=AT_MOST)
    whole, odd = divmod(prefix, 8)
    if whole and not odd:
        return load_payload(base, at, whole) + compare(first[:whole], negated=match.negated)
    bits = ((1 << 8 * size) - 1) ^ (high - low)
    return load_payload(base, at, size) + mask(bits.to_bytes(size, "big")) + compare(first, negated=match.negated)


def _match(match: InetMatch) -> bytes:
    match match:
        case InInterface():
            return load_meta(IIFNAME) + _interface(match)
        case OutInterface():
            return load_meta(OIFNAME) + _interface(match)
        case Protocol():
            return load_meta(L4PROTO) + compare(bytes((match.number,)), negated=match.negated)
        case Owner():
            return _owner(match)
        case Mark():
            return load_meta(MARK) + _mark(match)
        case ConnMark():
            return load_ct(CT_MARK) + _mark(match)
        case CtState():
            bits = sum(bit for state, bit in STATES.items() if state in match.states)
            return load_ct(CT_STATE) + mask(NATIVE.pack(bits)) + compare(bytes(4), negated=True)
        case UnknownMatch():
            return match.data
        case Ports() | Addresses():
            raise AssertionError("written by Batch, which makes their sets")
        case _:
            assert_never(match)


def _interface(match: InInterface | OutInterface) -> bytes:
    """Compares a whole name, all 16 bytes of it, or the beginning of one."""
    name = match.name.encode(errors="surrogateescape")
    return compare(name[:-1] if name.endswith(b"+") else name.ljust(16, b"\0"), negated=match.negated)


def _owner(match: Owner) -> bytes:
    load = load_meta(SKUID if match.kind == "uid" else SKGID)
    if match.low == match.high:
        return load + compare(NATIVE.pack(match.low), negated=match.negated)
    first, last = match.low.to_bytes(4, "big"), match.high.to_bytes(4, "big")
    load += to_network_order()
    if match.negated:
        return load + compare_range(first, last, negated=True)
    return load + compare(first, operator=AT_LEAST) + compare(last, operator=AT_MOST)


def _mark(match: Mark | ConnMark) -> bytes:
    masked = b"" if match.mask == ALL_BITS else mask(NATIVE.pack(match.mask))
    return masked + compare(NATIVE.pack(match.value), negated=match.negated)


def target_expressions(target: Target) -> bytes:
    """The expressions of a rule's target. InitError if nftables has none for it."""
    match target:
        case Verdict():
            if target.name == "QUEUE":
                raise InitError("--native-nftables: the target QUEUE has no form there")
            return verdict(VERDICTS[target.name]) if target.name else b""
        case Jump():
            return verdict(GOTO if target.goto else JUMP, chain_name(target.chain))
        case Redirect():
            return _redirect(target)
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
        case UnknownTarget():
            return target.data
        case _:
            assert_never(target)


def _redirect(target: Redirect) -> bytes:
    low, high = target.ports.low.to_bytes(2, "big"), target.ports.high.to_bytes(2, "big")
    if low == high:
        return load_data(low) + expression("redir", word(1, 1) + word(3, PORT_GIVEN))
    return load_data(low) + load_data(high, 2) + expression("redir", word(1, 1) + word(2, 2) + word(3, PORT_GIVEN))


def _tproxy(target: Tproxy) -> bytes:
    """Passes the packet to a transparent socket, marks it, and ends the rules of the hook, as iptables' TPROXY does."""
    _require_whole(target, target.mask)
    if any(target.address):
        raise _inexpressible(target, "only the packet's own address")
    family = FAMILY_NUMBERS[IPV4 if len(target.address) == 4 else IPV6]
    redirection = load_data(target.port.to_bytes(2, "big")) + expression("tproxy", word(1, family) + word(3, 1))
    return redirection + load_data(NATIVE.pack(target.mark)) + set_meta(MARK) + verdict(VERDICTS["ACCEPT"])


def _require_whole(target: Target, *masks: int) -> None:
    if any(mask != ALL_BITS for mask in masks):
        raise _inexpressible(target, "only whole marks")


def _inexpressible(target: Target, what: str) -> InitError:
    return InitError(f"--native-nftables: {shown(repr(target))}: {what} can be written there; leave the flag out")
