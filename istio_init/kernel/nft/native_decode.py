"""Inet tables from nftables' netlink dumps: chains, rules and sets as native_encode.py writes them, or nft.

A rule's expressions that are no match or target of model.inet become an UnknownMatch or UnknownTarget, which holds
them as the kernel has them.
"""

from __future__ import annotations

from istio_init.errors import KernelError, shown
from istio_init.formats.nft.layout import drop_behind, only_family
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import CHAIN_NAME, HEAD, RULE_CHAIN, SET_NAME, name
from istio_init.kernel.nft.expressions import (
    ACCEPT,
    AT_LEAST,
    AT_MOST,
    CT_MARK,
    CT_STATE,
    CT_ZONE,
    DESTINATION_AT,
    ELEMENT,
    EQUAL,
    EXPRESSION_DATA,
    EXPRESSION_NAME,
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
    UNEQUAL,
    USERDATA,
    VERDICTS,
)
from istio_init.kernel.nft.native_dump import TABLE_FLAGS, set_name
from istio_init.kernel.nft.native_encode import (
    CHAIN_HOOK,
    CHAIN_POLICY,
    CHAIN_TYPE,
    ELEMENTS,
    FAMILY_NUMBERS,
    HOOKS,
    SET_ANONYMOUS,
    SET_CONSTANT,
    SET_FLAGS,
    SET_INTERVAL,
    SET_KEY_TYPE,
    target_expressions,
)
from istio_init.kernel.nft.native_encode_rare import ALL_BITS, COMMENT, STATES
from istio_init.kernel.nft.set_elements import ELEMENT_TYPES
from istio_init.kernel.nft.set_intervals import members, read_intervals
from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    CtZone,
    Mark,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.inet import BASE_CHAINS, NAMES, Addresses, InetChain, InetRule, InetTable, Ports, iptables_name
from istio_init.model.rules import (
    IPV4,
    IPV6,
    TCP,
    UDP,
    InInterface,
    Jump,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Verdict,
)
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Literal, TypeAlias

    from istio_init.kernel.nft.native_dump import TableDump
    from istio_init.model.inet import InetMatch, Interval
    from istio_init.model.rules import Family, TableName, Target

    # An expression's name and its attributes.
    Expression: TypeAlias = tuple[str, dict[int, bytes]]
    # A set's element type and elements.
    SetContents: TypeAlias = tuple[str, tuple[Interval, ...]]

_FAMILIES = {number: family for family, number in FAMILY_NUMBERS.items()}
_VERDICTS = {code: verdict for verdict, code in VERDICTS.items()}
_ELEMENT_TYPES = {number: (kind, size) for kind, (number, size) in ELEMENT_TYPES.items()}
_INVERTED = 1  # NFT_LOOKUP_F_INV
_ORDER: Literal["little", "big"] = "little" if NATIVE.pack(1)[0] else "big"


class StoredTable(Record):
    """A table as the kernel holds it, with by chain the packets and bytes that each rule has counted."""

    table: InetTable
    counts: dict[str, tuple[tuple[int, int] | None, ...]]


def read_table(table: TableName, dump: TableDump) -> StoredTable:
    """Decode a table. KernelError for messages that are not what the kernel sends."""
    try:
        return _read_table(table, dump)
    except (KeyError, ValueError, IndexError) as error:
        text = f"nftables: the table {NAMES[table]}: the kernel's answer can't be read: {shown(str(error))}"
        raise KernelError(text) from error


def _read_table(table: TableName, dump: TableDump) -> StoredTable:
    contents_by_set = {
        each: values for data in dump.sets if (values := contents(data, dump.elements)) for each in [set_name(data)]
    }
    reader = NativeReader(contents_by_set)
    # A table that is switched off has no hooks.
    dormant = any(attributes(dump.table[HEAD.size :]).get(TABLE_FLAGS, b""))
    names: dict[str, str] = {}
    for data in dump.chains:
        facts = attributes(data[HEAD.size :])
        names[name(facts[CHAIN_NAME])] = _chain_name(table, facts, dormant=dormant)
    rules: dict[str, list[InetRule]] = {each: [] for each in names}
    counts: dict[str, list[tuple[int, int] | None]] = {each: [] for each in names}
    for data in dump.rules:
        facts = attributes(data[HEAD.size :])
        chain = name(facts[RULE_CHAIN])
        rule, count = reader.read(facts.get(EXPRESSIONS, b""))
        if note := comment(facts.get(USERDATA, b"")):
            rule = rule.replace(comment=note)
        rules[chain].append(rule)
        counts[chain].append(count)
    chains = tuple(InetChain(each, tuple(rules[theirs])) for theirs, each in names.items())
    return StoredTable(InetTable(table, chains), {names[each]: tuple(met) for each, met in counts.items()})


def comment(userdata: bytes) -> str:
    """A rule's comment, of its user data; empty if it has none."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == COMMENT:
            return name(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def contents(data: bytes, elements: Mapping[str, Sequence[bytes]]) -> SetContents | None:
    """A set of ports or addresses, None for any other."""
    facts = attributes(data[HEAD.size :])
    flags = int.from_bytes(facts.get(SET_FLAGS, b""), "big")
    kind, size = _ELEMENT_TYPES.get(int.from_bytes(facts[SET_KEY_TYPE], "big"), ("", 0))
    if not kind or flags & ~(SET_ANONYMOUS | SET_CONSTANT | SET_INTERVAL):
        return None
    lists = [attributes(each[HEAD.size :]).get(ELEMENTS, b"") for each in elements[name(facts[SET_NAME])]]
    try:
        intervals = read_intervals(lists, size, ranged=bool(flags & SET_INTERVAL))
    except ValueError:
        return None
    return (kind, intervals) if intervals else None


def _chain_name(table: TableName, facts: dict[int, bytes], *, dormant: bool) -> str:
    """A chain's name in iptables; a base chain that is hooked in otherwise than the plan's keeps its own."""
    own = name(facts[CHAIN_NAME])
    usual = iptables_name(own)
    hook = attributes(facts.get(CHAIN_HOOK, b""))
    place = None
    if hook and not dormant:
        number, priority = (int.from_bytes(hook[each], "big", signed=True) for each in (1, 2))
        place = number, name(facts[CHAIN_TYPE]), priority, int.from_bytes(facts[CHAIN_POLICY], "big")
    planned = {HOOKS[each]: (HOOKS[each], *facts, ACCEPT) for each, facts in BASE_CHAINS[table].items()}
    expected = next((planned[HOOKS[each]] for each in BASE_CHAINS[table] if each == usual), None)
    return usual if place == expected else own


def meaning(table: InetTable) -> InetTable:
    """What a stored table means in the plan's terms: formats.nft.layout.stored() undone."""
    family = only_family(table)
    chains = []
    for chain in table.chains:
        rules = list(chain.rules)
        if family:
            if chain.name in BASE_CHAINS[table.name]:
                del rules[0]
            rules = [rule.replace(family=family) if rule.family is None else rule for rule in rules]
        chains.append(chain.replace(rules=tuple(_without_drops(rules))))
    return table.replace(chains=tuple(chains))


def _without_drops(rules: list[InetRule]) -> Iterator[InetRule]:
    """The rules without the drop behind each tproxy; a tproxy without one is not what iptables' TPROXY does."""
    drop: InetRule | None = None
    for number, rule in enumerate(rules):
        if rule == drop:
            drop = None
            continue
        drop = drop_behind(rule) if isinstance(rule.target, Tproxy) else None
        if drop is None or drop in rules[number + 1 : number + 2]:
            yield rule
        else:
            kept = target_expressions(rule.target)
            yield rule.replace(target=UnknownTarget("tproxy that passes packets on without a listener", 0, kept))


class NativeReader:
    """Reads rules of a table whose sets are known; expressions that many rules have are taken apart once.

    `family` is that of a table of one family, whose rules don't compare it.
    """

    def __init__(self, sets: Mapping[str, SetContents], family: Family | None = None) -> None:
        self._sets, self._family = sets, family
        self._taken_apart: dict[bytes, Expression] = {}

    def read(self, data: bytes) -> tuple[InetRule, tuple[int, int] | None]:
        """A rule from its list of expressions, and its counter, if it has one. ValueError if the list is cut short."""
        count = None
        elements: list[bytes] = []
        expressions: list[Expression] = []
        for element in members(data):
            each = self._expression(element)
            if each[0] == "counter":
                count = counter_numbers(each[1])
            else:
                elements.append(element)
                expressions.append(each)
        packet = _Matches(self._sets, self._family)
        end = packet.read(expressions)
        target, begin = _target(expressions, end)
        unknown = b"".join([attribute(ELEMENT, each) for each in elements[end:begin]])
        if target is None:
            return InetRule(packet.matches(), UnknownTarget("nftables", 0, unknown), packet.family), count
        matches = (*packet.matches(), UnknownMatch("nftables", 0, unknown)) if unknown else packet.matches()
        return InetRule(matches, target, packet.family), count

    def _expression(self, element: bytes) -> Expression:
        parsed = self._taken_apart.get(element)
        if parsed is None:
            facts = attributes(element)
            parsed = name(facts.get(EXPRESSION_NAME, b"")), attributes(facts.get(EXPRESSION_DATA, b""))
            if parsed[0] != "counter":
                self._taken_apart[element] = parsed
        return parsed


def counter_numbers(facts: dict[int, bytes]) -> tuple[int, int]:
    """NFTA_COUNTER_PACKETS and NFTA_COUNTER_BYTES."""
    return int.from_bytes(facts.get(2, b""), "big"), int.from_bytes(facts.get(1, b""), "big")


class _Matches:
    """The matches at the beginning of a rule, and the family that they require."""

    def __init__(self, sets: Mapping[str, SetContents], family: Family | None) -> None:
        self.family = family
        self._matches: list[InetMatch] = []
        self._sets = sets
        self._protocol = 0

    def matches(self) -> tuple[InetMatch, ...]:
        """The matches in order. A port says its protocol, so that needs no match of its own."""
        protocols = {match.protocol for match in self._matches if isinstance(match, Ports)}
        if not protocols:
            return tuple(self._matches)
        return tuple([match for match in self._matches if not _is_implied(match, protocols)])

    def read(self, expressions: Sequence[Expression]) -> int:
        """Read as many expressions as are matches; returns their number."""
        at = 0
        while at < len(expressions):
            try:
                at = self._read(expressions, at)
            except (KeyError, ValueError, IndexError):
                break
        return at

    def _read(self, expressions: Sequence[Expression], at: int) -> int:
        """Read one match, which loads something, may change it, and tests it; returns where the next begins."""
        kind, facts = expressions[at]
        load = _load(kind, facts)
        register = facts[1]
        at += 1
        bits, swapped = b"", False
        if expressions[at][0] == "bitwise":
            bits = _bits(expressions[at][1], register)
            at += 1
        elif expressions[at][0] == "byteorder":
            swapped = True
            at += 1
        test, facts = expressions[at]
        if facts[2 if test == "lookup" else 1] != register:
            raise ValueError("another register")
        at += 1
        if test == "lookup":
            spans, negated = self._lookup(facts)
            self._add_field(load, bits, spans, negated=negated)
            return at
        negated = _number(facts[2]) == UNEQUAL
        low = high = _value(facts[3])
        if test == "range":
            high = _value(facts[4])
        elif _number(facts[2]) == AT_LEAST:
            test, facts = expressions[at]
            if test != "cmp" or facts[1] != register or _number(facts[2]) != AT_MOST:
                raise ValueError("not a range")
            high = _value(facts[3])
            at += 1
        elif test != "cmp" or _number(facts[2]) not in {EQUAL, UNEQUAL}:
            raise ValueError("not a comparison")
        self._add(load, bits, (low, high), negated=negated, swapped=swapped)
        return at

    def _lookup(self, facts: dict[int, bytes]) -> tuple[SetContents, bool]:
        """A set's contents, and whether the value must not be in it."""
        flags = _number(facts.get(5, b""))
        if 3 in facts or flags & ~_INVERTED:
            raise ValueError("not a plain lookup")
        return self._sets[name(facts[1])], bool(flags)

    def _add(
        self, load: tuple[object, ...], bits: bytes, values: tuple[bytes, bytes], *, negated: bool, swapped: bool
    ) -> None:
        low, high = values
        if load[0] == "payload":
            self._add_field(load, bits, ("", ((_number(low), _number(high)),)), negated=negated)
            return
        key = load[1]
        if load[0] == "meta" and low == high and not bits and not swapped:
            if key == NFPROTO and not negated:
                family = _FAMILIES[_number(low)]
                if self.family not in {None, family}:
                    raise ValueError("two families")
                self.family = family
                return
            if key == L4PROTO and len(low) == 1:
                self._protocol = 0 if negated else low[0]
                self._matches.append(Protocol(low[0], negated))
                return
            if key in {IIFNAME, OIFNAME}:
                kind = InInterface if key == IIFNAME else OutInterface
                self._matches.append(kind(_interface_name(low), negated))
                return
        self._matches.append(_of_number(load, bits, values, negated=negated, swapped=swapped))

    def _add_field(self, load: tuple[object, ...], bits: bytes, contents: SetContents, *, negated: bool) -> None:
        """A match of a port or an address, of which all or, with `bits` or in the load, a prefix is compared."""
        kind, intervals = contents
        _, base, at, length = load
        if base == TRANSPORT and length == 2 and not bits and self._protocol in {TCP, UDP}:
            if kind not in {"", "inet_service"} or at not in {0, 2}:
                raise ValueError("not a port")
            self._matches.append(Ports(self._protocol, "dport" if at else "sport", intervals, negated))
            return
        size = {IPV4: 4, IPV6: 16}[self.family] if self.family else 0
        if base != NETWORK or not size or at not in {SOURCE_AT[size], DESTINATION_AT[size]}:
            raise ValueError("not an address")
        if kind not in {"", "ipv4_addr" if size == 4 else "ipv6_addr"} or (kind and (bits or length != size)):
            raise ValueError("not a set of addresses")
        if not kind:
            intervals = (_prefix_interval(intervals[0], bits, int(length), size),)  # type: ignore[call-overload]
        self._matches.append(Addresses("saddr" if at == SOURCE_AT[size] else "daddr", intervals, negated))


def _is_implied(match: InetMatch, protocols: set[int]) -> bool:
    return isinstance(match, Protocol) and not match.negated and match.number in protocols


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _value(facts: bytes) -> bytes:
    return attributes(facts)[1]


def _load(kind: str, facts: dict[int, bytes]) -> tuple[object, ...]:
    """What an expression loads: a key of meta or ct, or base, offset and length of a part of a header."""
    if kind == "payload" and facts.keys() == {1, 2, 3, 4}:
        return kind, _number(facts[2]), _number(facts[3]), _number(facts[4])
    if kind in {"meta", "ct"} and facts.keys() == {1, 2}:
        return kind, _number(facts[2])
    raise ValueError("not a load")


def _bits(facts: dict[int, bytes], register: bytes) -> bytes:
    """The bits that a bitwise expression keeps."""
    if facts[1] != register or facts[2] != register or any(_value(facts[5])) or any(facts.get(6, b"")):
        raise ValueError("not a mask")
    return _value(facts[4])


def _prefix_interval(span: Interval, bits: bytes, length: int, size: int) -> Interval:
    """The addresses whose first `length` bytes, or those of `bits`, are as given."""
    low, high = span
    if not 0 < length <= size or (bits and (length != size or len(bits) != size)):
        raise ValueError("not a prefix")
    rest = 8 * (size - length)
    if bits:
        hosts = ((1 << 8 * size) - 1) ^ _number(bits)
        if hosts & (hosts + 1) or low & hosts or low != high:
            raise ValueError("not a prefix")
        return low, low | hosts
    return low << rest, (high << rest) | ((1 << rest) - 1)


def _interface_name(value: bytes) -> str:
    """A whole name, which is padded with zeros, or the beginning of one, which in iptables ends in +."""
    text = value.rstrip(b"\0").decode(errors="surrogateescape")
    return text if value.endswith(b"\0") else f"{text}+"


def _of_number(
    load: tuple[object, ...], bits: bytes, values: tuple[bytes, bytes], *, negated: bool, swapped: bool
) -> InetMatch:
    """A match of a number of 32 bits in the machine's order, or, `swapped`, in network order."""
    low, high = values
    if len(low) != 4 or len(high) != 4 or (bits and len(bits) != 4) or (low != high and not swapped):
        raise ValueError("not a number")
    source, key = load
    if source == "meta" and key in {SKUID, SKGID} and not bits:
        first, last = (_number(low), _number(high)) if swapped else (NATIVE.unpack(low)[0], NATIVE.unpack(high)[0])
        return Owner("uid" if key == SKUID else "gid", first, last, negated)
    if swapped:
        raise ValueError("not a mark")
    value, mask = NATIVE.unpack(low)[0], NATIVE.unpack(bits)[0] if bits else ALL_BITS
    if source == "meta" and key == MARK:
        return Mark(value, mask, negated)
    if source == "ct" and key == CT_MARK:
        return ConnMark(value, mask, negated)
    if source == "ct" and key == CT_STATE and bits and negated and not value and not mask & ~sum(STATES.values()):
        return CtState(tuple(state for state in CT_STATES if mask & STATES.get(state, 0)))
    raise ValueError("a key that iptables has no match for")


def _target(expressions: Sequence[Expression], begin: int) -> tuple[Target | None, int]:
    """The target at the end of a rule whose matches end at `begin`, and where it begins.

    A verdict counts whatever precedes it; None means expressions that are no target in iptables.
    """
    rest = expressions[begin:]
    if not rest:
        return Verdict(""), begin
    kinds = "+".join(kind for kind, _ in rest)
    read = _TARGETS.get(kinds)
    try:
        if read is not None:
            return read(*[facts for _, facts in rest]), begin
        if rest[-1][0] == "immediate" and not any(kind in _SETTERS for kind, _ in rest[:-1]):
            return verdict_of(rest[-1][1]), len(expressions) - 1
    except (KeyError, ValueError):
        pass
    return None, len(expressions)


# Expressions after which a packet is no longer as it was, or the rule does more than its verdict.
_SETTERS = {"meta", "ct", "immediate", "redir", "tproxy", "nat", "masq", "payload", "dup", "fwd", "objref", "dynset"}


def verdict_of(facts: dict[int, bytes]) -> Target:
    """The verdict or jump that an immediate expression is. ValueError or KeyError where it is none."""
    data = attributes(attributes(facts[2])[2])
    code = int.from_bytes(data[1], "big", signed=True)
    if any(facts[1]):
        raise ValueError("not a verdict")
    if 2 in data:
        if code not in {JUMP, GOTO}:
            raise ValueError("not a jump")
        return Jump(iptables_name(name(data[2])), code == GOTO)
    return Verdict(_VERDICTS[code])  # type: ignore[arg-type]


def _constant(facts: dict[int, bytes], register: int = 1) -> bytes:
    """What is loaded into a register."""
    if _number(facts[1]) != register:
        raise ValueError("another register")
    return _value(facts[2])


def _redirect(*facts: dict[int, bytes]) -> Target:
    *ports, redirection = facts
    low, high = _constant(ports[0]), _constant(ports[-1], len(ports))
    registers = {number: _number(redirection[number]) for number in (1, 2) if number in redirection}
    whole = {1: 1} if len(ports) == 1 else {1: 1, 2: 2}
    # Of a single port, the kernel may repeat the register.
    if registers not in (whole, {1: 1, 2: len(ports)}) or _number(redirection[3]) != 2:
        raise ValueError("not a plain redirection")
    return Redirect(PortRange(_number(low), _number(high)))


def _tproxy(*facts: dict[int, bytes]) -> Target:
    port, redirection, mark, setting, end = facts
    if redirection.keys() != {1, 3} or _number(redirection[3]) != 1 or verdict_of(end) != Verdict("ACCEPT"):
        raise ValueError("not as iptables' TPROXY")
    family = _FAMILIES[_number(redirection[1])]
    return Tproxy(_number(_constant(port)), bytes(4 if family == IPV4 else 16), _set_mark(mark, setting).value)


def _set_mark(mark: dict[int, bytes], setting: dict[int, bytes]) -> SetMark:
    if setting.keys() != {2, 3} or _number(setting[2]) != MARK or _number(setting[3]) != 1:
        raise ValueError("not a mark")
    return SetMark(int.from_bytes(_constant(mark), _ORDER))


def _set_zone(zone: dict[int, bytes], setting: dict[int, bytes]) -> Target:
    if setting.keys() != {2, 4} or _number(setting[2]) != CT_ZONE or _number(setting[4]) != 1:
        raise ValueError("not a zone")
    return CtZone(int.from_bytes(_constant(zone), _ORDER))


def _save_mark(load: dict[int, bytes], setting: dict[int, bytes]) -> Target:
    if _load("meta", load) != ("meta", MARK) or setting.keys() != {2, 4} or _number(setting[2]) != CT_MARK:
        raise ValueError("not a saved mark")
    return SaveMark()


def _restore_mark(load: dict[int, bytes], setting: dict[int, bytes]) -> Target:
    if _load("ct", load) != ("ct", CT_MARK) or setting.keys() != {2, 3} or _number(setting[2]) != MARK:
        raise ValueError("not a restored mark")
    return RestoreMark()


# By the kinds of a target's expressions, in order.
_TARGETS: dict[str, Callable[..., Target]] = {
    "immediate": verdict_of,
    "immediate+redir": _redirect,
    "immediate+immediate+redir": _redirect,
    "immediate+tproxy+immediate+meta+immediate": _tproxy,
    "immediate+meta": _set_mark,
    "immediate+ct": _set_zone,
    "meta+ct": _save_mark,
    "ct+meta": _restore_mark,
}
