"""Inet tables from nftables' netlink dumps: chains, rules and sets as native_encode.py writes them, or nft.

A rule's expressions that are no match or target of model.inet become an UnknownMatch or UnknownTarget, which holds
them as the kernel has them.
"""

from __future__ import annotations

from istio_init.errors import KernelError, shown
from istio_init.formats.nft.as_rulesets import only_family
from istio_init.formats.nft.layout import drop_behind
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import CHAIN_NAME, HEAD, RULE_CHAIN, SET_NAME, is_dormant, name
from istio_init.kernel.nft.expressions import (
    ACCEPT,
    ELEMENT,
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    EXPRESSIONS,
    USERDATA,
)
from istio_init.kernel.nft.native_decode_match import MatchReader
from istio_init.kernel.nft.native_decode_target import read_target
from istio_init.kernel.nft.native_dump import set_name
from istio_init.kernel.nft.native_encode import (
    CHAIN_HOOK,
    CHAIN_POLICY,
    CHAIN_TYPE,
    ELEMENTS,
    HOOKS,
    SET_ANONYMOUS,
    SET_CONSTANT,
    SET_FLAGS,
    SET_INTERVAL,
    SET_KEY_TYPE,
    target_expressions,
)
from istio_init.kernel.nft.native_encode_rare import COMMENT
from istio_init.kernel.nft.set_elements import ELEMENT_TYPES
from istio_init.kernel.nft.set_intervals import members, read_intervals, read_values
from istio_init.model.extensions import (
    Tproxy,
)
from istio_init.model.inet import BASE_CHAINS, NAMES, InetChain, InetRule, InetTable, iptables_name
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from istio_init.kernel.nft.native_decode_match import Expression, SetContents
    from istio_init.kernel.nft.native_dump import TableDump
    from istio_init.model.inet import Content
    from istio_init.model.rules import Family, TableName

_ELEMENT_TYPES = {number: (kind, size) for kind, (number, size) in ELEMENT_TYPES.items()}


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
    dormant = is_dormant(attributes(dump.table[HEAD.size :]))
    names: dict[str, str] = {}
    for data in dump.chains:
        attrs = attributes(data[HEAD.size :])
        names[name(attrs[CHAIN_NAME])] = _chain_name(table, attrs, dormant=dormant)
    rules: dict[str, list[InetRule]] = {each: [] for each in names}
    counts: dict[str, list[tuple[int, int] | None]] = {each: [] for each in names}
    for data in dump.rules:
        attrs = attributes(data[HEAD.size :])
        chain = name(attrs[RULE_CHAIN])
        rule, count = reader.read(attrs.get(EXPRESSIONS, b""))
        if note := comment(attrs.get(USERDATA, b"")):
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
    attrs = attributes(data[HEAD.size :])
    flags = int.from_bytes(attrs.get(SET_FLAGS, b""), "big")
    kind, size = _ELEMENT_TYPES.get(int.from_bytes(attrs[SET_KEY_TYPE], "big"), ("", 0))
    if not kind or flags & ~(SET_ANONYMOUS | SET_CONSTANT | SET_INTERVAL):
        return None
    lists = [attributes(each[HEAD.size :]).get(ELEMENTS, b"") for each in elements[name(attrs[SET_NAME])]]
    try:
        if kind != "inet_service" and not flags & (SET_INTERVAL | SET_ANONYMOUS):
            values: Content = read_values(lists, size)
        else:
            values = read_intervals(lists, size, ranged=bool(flags & SET_INTERVAL))
    except ValueError:
        return None
    return (kind, values) if values else None


def _chain_name(table: TableName, attrs: dict[int, bytes], *, dormant: bool) -> str:
    """A chain's name in iptables; a base chain that is hooked in otherwise than the plan's keeps its own."""
    own = name(attrs[CHAIN_NAME])
    usual = iptables_name(own)
    hook = attributes(attrs.get(CHAIN_HOOK, b""))
    place = None
    if hook and not dormant:
        number, priority = (int.from_bytes(hook[each], "big", signed=True) for each in (1, 2))
        place = number, name(attrs[CHAIN_TYPE]), priority, int.from_bytes(attrs[CHAIN_POLICY], "big")
    planned = {HOOKS[each]: (HOOKS[each], *attrs, ACCEPT) for each, attrs in BASE_CHAINS[table].items()}
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
        packet = MatchReader(self._sets, self._family)
        end = packet.read(expressions)
        target, begin = read_target(expressions, end)
        unknown = b"".join([attribute(ELEMENT, each) for each in elements[end:begin]])
        if target is None:
            return InetRule(packet.matches(), UnknownTarget("nftables", 0, unknown), packet.family), count
        matches = (*packet.matches(), UnknownMatch("nftables", 0, unknown)) if unknown else packet.matches()
        return InetRule(matches, target, packet.family), count

    def _expression(self, element: bytes) -> Expression:
        parsed = self._taken_apart.get(element)
        if parsed is None:
            attrs = attributes(element)
            parsed = name(attrs.get(EXPRESSION_NAME, b"")), attributes(attrs.get(EXPRESSION_DATA, b""))
            if parsed[0] != "counter":
                self._taken_apart[element] = parsed
        return parsed


def counter_numbers(attrs: dict[int, bytes]) -> tuple[int, int]:
    """NFTA_COUNTER_PACKETS and NFTA_COUNTER_BYTES."""
    return int.from_bytes(attrs.get(2, b""), "big"), int.from_bytes(attrs.get(1, b""), "big")
