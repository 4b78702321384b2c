"""Inet tables as messages of nftables' netlink batch: tables, chains, sets with their elements, rules.

What the kernel then holds is what `nft -f` makes of the text of a dry run (formats/nft/listing.py), including the user
data by which nft prints intervals; integration tests compare both.
"""

from __future__ import annotations

from istio_init.errors import InitError, KernelError
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
    DESTINATION_AT,
    EXPRESSIONS,
    GOTO,
    IIFNAME,
    JUMP,
    L4PROTO,
    NATIVE,
    NETWORK,
    NFPROTO,
    OIFNAME,
    SKGID,
    SKUID,
    SOURCE_AT,
    TRANSPORT,
    USERDATA,
    VERDICTS,
    compare,
    compare_range,
    expression,
    load_meta,
    load_payload,
    look_up,
    mask,
    redirect,
    to_network_order,
    verdict,
)
from istio_init.kernel.nft.set_elements import ELEMENT_TYPES, count_ranged, ranged_elements, single_elements
from istio_init.model.inet import (
    BASE_CHAINS,
    NAMES,
    Addresses,
    Ports,
    chain_name,
    content,
    element_type,
    needs_family_match,
    netmask,
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
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from istio_init.kernel.netlink.batch import Message
    from istio_init.model.inet import Content, InetMatch, InetRule, InetTable
    from istio_init.model.rules import Family, Hook, TableName, Target

    # What a message is about: a table, and a chain or set in it, and a rule of a chain with its number from 1.
    Subject: TypeAlias = tuple[str, str, int, InetRule | None]
    # The element type and the content of each set, its name in the table, and its number in the batch.
    NumberedSets: TypeAlias = list[tuple[str, Content, str, int]]

HOOKS: dict[Hook, int] = {"PREROUTING": 0, "OUTPUT": 3}  # <linux/netfilter.h>
FAMILY_NUMBERS: dict[Family, int] = {IPV4: 2, IPV6: 10}

CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 4, 5, 7  # NFTA_CHAIN_*
# NFTA_SET_*, NFTA_SET_ELEM_LIST_*
SET_FLAGS, SET_KEY_TYPE, SET_KEY_LENGTH, SET_DESCRIPTION, SET_ID, SET_USERDATA = 3, 4, 5, 9, 10, 13
ELEMENTS, ELEMENTS_SET_ID = 3, 4
SET_ANONYMOUS, SET_CONSTANT, SET_INTERVAL = 1, 2, 4  # NFT_SET_*

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

# The name of a set that the kernel is to number.
_ANONYMOUS = "__set%d"
_COUNTER = expression("counter", b"")


class EncodedSet(Record):
    """A set: its attributes as the kernel dumps them, but for changing ones, and what it holds."""

    facts: dict[int, bytes]
    content: Content


class EncodedTable(Record):
    """A table's messages, what each is about, and what the kernel dumps of it once they are carried out.

    `rules` has by chain for each rule the expressions before its counter, those behind, and its user data.
    """

    messages: list[Message]
    subjects: list[Subject]
    chains: dict[str, tuple[bytes, ...]]
    sets: dict[str, EncodedSet]
    rules: dict[str, list[tuple[bytes, bytes, bytes]]]


class TableEncoder:
    """Encodes tables for one batch, in which each set has a number."""

    def __init__(self) -> None:
        self._number = 0

    def encode(self, table: InetTable, *, to_send: bool = True) -> EncodedTable:
        """A table that does not exist, as formats.nft.layout.layout() plans it.

        One that is not `to_send` has no messages: it can be compared, and is encoded in half the time.
        """
        return _TableWriter(table, self._next_number, to_send=to_send).write()

    def _next_number(self) -> int:
        self._number += 1
        return self._number


def deletion(name: TableName) -> Message:
    """Delete a table with everything in it."""
    return DELTABLE, 0, body(NFPROTO_INET, text(NFT_NAME, NAMES[name]))


class _TableWriter:
    def __init__(self, table: InetTable, next_number: Callable[[], int], *, to_send: bool) -> None:
        self._to_send = to_send
        self._table = stored(table)
        self._name = NAMES[table.name]
        self._head = body(NFPROTO_INET, text(NFT_NAME, self._name))
        self._next_number = next_number
        self._anonymous = 0
        self._result = EncodedTable([], [], {}, {}, {})

    def write(self) -> EncodedTable:
        """All messages: the table, its chains, its sets with a name, its rules with those of their own."""
        if self._to_send:
            self._add(NEWTABLE, NLM_F_CREATE, "")
        for chain in self._table.chains:
            self._chain(chain.name)
        named = [(*key, each, self._set(each, *key)) for key, each in sets(self._table).items()]
        for chain in self._table.chains:
            name = chain_name(chain.name)
            head = text(RULE_CHAIN, name)
            rules = self._result.rules[name] = []
            for number, rule in enumerate(chain.rules, 1):
                try:
                    sent, dumped, target = self._rule(rule, named)
                except OverflowError as error:
                    from istio_init.kernel.nft.native_refusal import describe

                    subject = self._name, name, number, rule
                    raise KernelError(f"nftables: {describe(subject)}: no message can hold this: {error}") from error
                note = _userdata(rule)
                rules.append((dumped, target, note))
                if not self._to_send:
                    continue
                expressions = attribute(EXPRESSIONS, sent + _COUNTER + target)
                userdata = attribute(USERDATA, note) if note else b""
                self._add(
                    NEWRULE, NLM_F_CREATE | NLM_F_APPEND, name, head, expressions, userdata, rule=rule, number=number
                )
        return self._result

    def _add(
        self, kind: int, flags: int, subject: str, *parts: bytes, rule: InetRule | None = None, number: int = 0
    ) -> None:
        self._result.messages.append((kind, flags, b"".join((self._head, *parts))))
        self._result.subjects.append((self._name, subject, number, rule))

    def _chain(self, iptables_name: str) -> None:
        name = chain_name(iptables_name)
        facts: tuple[bytes, ...] = ()
        for hook, (kind, priority) in BASE_CHAINS[self._table.name].items():
            if iptables_name == hook:
                facts = word(1, HOOKS[hook]) + word(2, priority), b"\0\0\0\1", kind.encode() + b"\0"  # NF_ACCEPT
        keys = (CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE)
        self._result.chains[name] = facts
        if self._to_send:
            self._add(NEWCHAIN, NLM_F_CREATE, name, text(CHAIN_NAME, name), *map(attribute, keys, facts))

    def _rule(self, rule: InetRule, named: NumberedSets) -> tuple[bytes, bytes, bytes]:
        """A rule's matches as they are sent and as they are dumped, and its target.

        A field of a protocol is loaded behind a comparison of the packet's protocol.
        """
        sent: list[bytes] = []
        dumped: list[bytes] = []
        compared: set[bytes] = set()
        if needs_family_match(rule):
            sent.append(_family(rule))
            dumped.append(sent[-1])
        for match in rule.matches:
            if isinstance(match, Ports | Addresses):
                before = _family(rule) if isinstance(match, Addresses) else _transport(match)
                if before in compared:
                    before = b""
                compared.add(before)
                one, other = self._field(match, rule, named)
                sent.append(before + one)
                dumped.append(before + other)
            else:
                sent.append(_match(match))
                dumped.append(sent[-1])
        return b"".join(sent), b"".join(dumped), target_expressions(rule.target)

    def _field(self, match: Ports | Addresses, rule: InetRule, named: NumberedSets) -> tuple[bytes, bytes]:
        """Loads a port or an address, and compares it with the match's intervals: as sent, and as dumped."""
        kind = element_type(match, rule)
        size = ELEMENT_TYPES[kind][1]
        if isinstance(match, Ports):
            base, at = TRANSPORT, 0 if match.side == "sport" else 2
        else:
            base, at = NETWORK, (SOURCE_AT if match.side == "saddr" else DESTINATION_AT)[size]
        if len(match.intervals) == 1:
            expressions = _one_interval(match, base, at, size)
            return expressions, expressions
        load = load_payload(base, at, size)
        held = kind, content(match)
        if entry := next((each for each in named if each[:2] == held), None):
            _, _, name, number = entry
            sent = name
            if isinstance(match, Addresses) and match.networks and match.prefix < 8 * size:
                load += mask(netmask(match.prefix, size))
        else:
            field = _FIELDS[match.protocol if isinstance(match, Ports) else rule.family or IPV4, match.side]
            name, sent = f"__set{self._anonymous}", _ANONYMOUS
            number = self._set(name, kind, match.intervals, field)
        return (
            load + look_up(sent, negated=match.negated, number=number),
            load + look_up(name, negated=match.negated),
        )

    def _set(self, name: str, kind: str, values: Content, field: tuple[int, int] | None = None) -> int:
        """A set and its elements; returns its number. One of a single rule, which loads `field`, has no name."""
        type_number, size = ELEMENT_TYPES[kind]
        ranged = False
        if isinstance(values, frozenset):
            elements = single_elements(values, size) if self._to_send else ()
            count = len(values)
        elif field and all(low == high for low, high in values):
            elements = single_elements([low.to_bytes(size, "big") for low, _ in values], size)
            count = len(values)
        else:
            ranged = True
            elements = ranged_elements(values, size) if self._to_send else ()
            count = count_ranged(values)
        flags = SET_INTERVAL if ranged else 0
        userdata, sent = _KEY_ORDER, name
        if field:
            flags |= SET_ANONYMOUS | SET_CONSTANT
            userdata += (_MERGED if ranged else b"") + _type_of(*field)
            sent = _ANONYMOUS
            self._anonymous += 1
        # Of a hash table whose size it knows the kernel makes one that needs not grow.
        has_size = field or isinstance(values, frozenset)
        description = attribute(SET_DESCRIPTION, word(1, count)) if has_size else b""
        facts = {
            SET_FLAGS: flags.to_bytes(4, "big"),
            SET_KEY_TYPE: type_number.to_bytes(4, "big"),
            SET_KEY_LENGTH: size.to_bytes(4, "big"),
            SET_USERDATA: userdata,
        }
        self._result.sets[name] = EncodedSet(facts, values)
        number = self._next_number()
        if not self._to_send:
            return number
        head = text(SET_NAME, sent)
        attributes = b"".join(map(attribute, facts.keys(), facts.values()))
        self._add(NEWSET, NLM_F_CREATE, name, head, attributes, word(SET_ID, number), description)
        for each in elements:
            self._add(NEWSETELEM, NLM_F_CREATE, name, head, word(ELEMENTS_SET_ID, number), attribute(ELEMENTS, each))
        return number


def _userdata(rule: InetRule) -> bytes:
    """A rule's comment as nft keeps it."""
    if not rule.comment:
        return b""
    from istio_init.kernel.nft.native_encode_rare import comment

    return comment(rule.comment)


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
        return load_payload(base, at, size) + _in_range(first, last, negated=match.negated)
    whole, odd = divmod(prefix, 8)
    if whole and not odd:
        return load_payload(base, at, whole) + compare(first[:whole], negated=match.negated)
    bits = ((1 << 8 * size) - 1) ^ (high - low)
    return load_payload(base, at, size) + mask(bits.to_bytes(size, "big")) + compare(first, negated=match.negated)


def _in_range(first: bytes, last: bytes, *, negated: bool) -> bytes:
    """As nft compares what is loaded with a range."""
    if negated:
        return compare_range(first, last, negated=True)
    return compare(first, operator=AT_LEAST) + compare(last, operator=AT_MOST)


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
        case _:
            from istio_init.kernel.nft.native_encode_rare import match_expressions

            return match_expressions(match)


def _interface(match: InInterface | OutInterface) -> bytes:
    """Compares a whole name, all 16 bytes of it, or the beginning of one."""
    name = match.name.encode(errors="surrogateescape")
    return compare(name[:-1] if name.endswith(b"+") else name.ljust(16, b"\0"), negated=match.negated)


def _owner(match: Owner) -> bytes:
    load = load_meta(SKUID if match.kind == "uid" else SKGID)
    if match.low == match.high:
        return load + compare(NATIVE.pack(match.low), negated=match.negated)
    first, last = match.low.to_bytes(4, "big"), match.high.to_bytes(4, "big")
    return load + to_network_order() + _in_range(first, last, negated=match.negated)


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
            return redirect(target.ports.low.to_bytes(2, "big"), target.ports.high.to_bytes(2, "big"))
        case _:
            from istio_init.kernel.nft import native_encode_rare

            return native_encode_rare.target_expressions(target)
