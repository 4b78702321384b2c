"""Istio's inet tables as the kernel dumps them, and whether that is what was, or would be, written."""

from __future__ import annotations

from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELCHAIN,
    DELRULE,
    HEAD,
    NFPROTO_INET,
    NFT_NAME,
    RULE_CHAIN,
    SET_NAME,
    TABLE_FLAGS,
    body,
    is_dormant,
    name,
    text,
)
from istio_init.kernel.nft.expressions import EXPRESSIONS, USERDATA, expression
from istio_init.kernel.nft.native_encode import (
    CHAIN_HOOK,
    CHAIN_POLICY,
    CHAIN_TYPE,
    ELEMENTS,
    SET_FLAGS,
    SET_INTERVAL,
    SET_KEY_LENGTH,
    deletion,
)
from istio_init.kernel.nft.set_elements import are_elements, dumped_ranges
from istio_init.model.inet import NAMES
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_init.kernel.netlink.batch import Message
    from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
    from istio_init.kernel.nft.native_encode import EncodedSet, EncodedTable
    from istio_init.model.rules import TableName

_CHAIN_FLAGS, _CHAIN_BINDING = 10, 4  # NFTA_CHAIN_FLAGS, NFT_CHAIN_BINDING
_SET_MAP = 8  # NFT_SET_MAP
DELSET, DELSETELEM = 11, 14  # NFT_MSG_*
SET_ANONYMOUS = 1  # NFT_SET_ANONYMOUS
_COUNTER = expression("counter", bytes(24))
# What a counter begins with, up to the first number; behind the packets there is nothing.
_COUNTER_HEAD = _COUNTER[:20]


class TableDump(Record):
    """One table's messages: the table itself, its chains, its rules, its sets, and by set the lists of elements."""

    table: bytes
    chains: tuple[bytes, ...]
    rules: tuple[bytes, ...]
    sets: tuple[bytes, ...]
    elements: dict[str, tuple[bytes, ...]]


def dump_tables(channel: NfnetlinkChannel) -> dict[TableName, TableDump]:
    """Those of Istio's tables that exist. To be called by NfnetlinkChannel.consistent()."""
    bodies = {table_of(data): data for data in channel.table_bodies() if data[0] == NFPROTO_INET}
    tables: dict[TableName, TableDump] = {}
    chains: list[bytes] | None = None
    for table, own in NAMES.items():
        if own in bodies:
            if chains is None:
                chains = channel.chains(NFPROTO_INET)
            sets = tuple(channel.sets(NFPROTO_INET, own))
            elements = {each: tuple(channel.elements(NFPROTO_INET, own, each)) for each in map(set_name, sets)}
            rules = tuple(channel.rules(NFPROTO_INET, own))
            in_table = tuple([data for data in chains if table_of(data) == own])
            tables[table] = TableDump(bodies[own], in_table, rules, sets, elements)
    return tables


def table_of(data: bytes) -> str:
    """The table that a message about a table, or something in it, names."""
    return name(attributes(data[HEAD.size :]).get(NFT_NAME, b""))


def set_name(data: bytes) -> str:
    """The name of a set, by its NFT_MSG_NEWSET."""
    return name(attributes(data[HEAD.size :]).get(SET_NAME, b""))


def holds(dump: TableDump, encoded: EncodedTable) -> bool:
    """Whether a dump is what the kernel dumps of an encoded table, byte by byte but for counters.

    Where it is not, the table may still mean the same (native_decode.py): other kernels dump other defaults.
    """
    return (
        not is_dormant(attributes(dump.table[HEAD.size :]))
        and _chains(dump.chains) == encoded.chains
        and _same_sets(dump, encoded.sets)
        and _same_rules(dump.rules, encoded.rules)
    )


def emptying(table: TableName, dump: TableDump, encoded: EncodedTable) -> list[Message]:
    """Empty a table that is written anew; base chains that are hooked as they should be stay, and so do other chains.

    A packet would else meet the hooks of the old chains and of the new ones, in one of them before the batch takes
    effect and in the other after it: neither would capture it. A new chain has no rules until the kernel publishes
    them, one chain after the other: a packet that was held up may come to it by a rule that is published before.

    Chains are listed in the order in which they were created, so those stay that come before the first difference.
    """
    # One that is bound to a rule goes with it.
    existing = _chains([data for data in dump.chains if not _flags(data, _CHAIN_FLAGS) & _CHAIN_BINDING])
    kept = [each for each, facts in existing.items() if facts]
    planned = [each for each, facts in encoded.chains.items() if facts]
    # A table with flags, whichever, is made anew: what is written has none.
    if (
        any(attributes(dump.table[HEAD.size :]).get(TABLE_FLAGS, b""))
        or planned[: len(kept)] != kept
        or any(existing[each] != encoded.chains[each] for each in kept)
    ):
        return [deletion(table)]
    head = body(NFPROTO_INET, text(NFT_NAME, NAMES[table]))
    users = [each for each, facts in existing.items() if not facts]
    if kept == planned:
        pairs = enumerate(zip(users, [each for each, facts in encoded.chains.items() if not facts], strict=False))
        users = users[next((at for at, (old, new) in pairs if old != new), len(encoded.chains) - len(planned)) :]
    # The kernel deletes sets without a name of their own with the rules that they are in.
    sets = {head + text(SET_NAME, set_name(data)): _flags(data, SET_FLAGS) for data in dump.sets}
    named = {which: flags for which, flags in sets.items() if not flags & SET_ANONYMOUS}
    return [
        (DELRULE, 0, head),
        # A map may jump to the chains: before Linux 6.4 it lets go of them with its elements alone.
        *((DELSETELEM, 0, which) for which, flags in named.items() if flags & _SET_MAP),
        *((DELSET, 0, which) for which in named),
        *((DELCHAIN, 0, head + text(CHAIN_NAME, each)) for each in users),
    ]


def _flags(data: bytes, kind: int) -> int:
    return int.from_bytes(attributes(data[HEAD.size :]).get(kind, b""), "big")


def _chains(dumped: Sequence[bytes]) -> dict[str, tuple[bytes, ...]]:
    hooks = {}
    for data in dumped:
        facts = attributes(data[HEAD.size :])
        hook = tuple([facts.get(key, b"") for key in (CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE)])
        hooks[name(facts.get(CHAIN_NAME, b""))] = hook if any(hook) else ()
    return hooks


def _same_sets(dump: TableDump, encoded: Mapping[str, EncodedSet]) -> bool:
    if len(dump.sets) != len(encoded):
        return False
    for data in dump.sets:
        facts = attributes(data[HEAD.size :])
        own = name(facts.get(SET_NAME, b""))
        planned = encoded.get(own)
        if planned is None or any(facts.get(key, bytes(4)) != value for key, value in planned.facts.items()):
            return False
        lists = [attributes(each[HEAD.size :]).get(ELEMENTS, b"") for each in dump.elements[own]]
        if not _same_elements(lists, planned):
            return False
    return True


def _same_elements(lists: Sequence[bytes], planned: EncodedSet) -> bool:
    """Whether the elements are the same: a tree of intervals is dumped descending, a hash table in any order."""
    size = int.from_bytes(planned.facts[SET_KEY_LENGTH], "big")
    values = planned.content
    if isinstance(values, frozenset):
        return are_elements(lists, values, size)
    if planned.facts[SET_FLAGS][3] & SET_INTERVAL:
        return b"".join(lists) == dumped_ranges(values, size)
    return are_elements(lists, [low.to_bytes(size, "big") for low, _ in values], size)


def _same_rules(dumped: Sequence[bytes], planned: Mapping[str, Sequence[tuple[bytes, bytes, bytes]]]) -> bool:
    """Whether the rules are the same, each chain's in their order; the kernel dumps one chain after the other."""
    if len(dumped) != sum(map(len, planned.values())):
        return False
    left = {chain: iter(rules) for chain, rules in planned.items()}
    for data in dumped:
        facts = attributes(data[HEAD.size :])
        rule = next(left.get(name(facts.get(RULE_CHAIN, b"")), iter(())), None)
        if rule is None:
            return False
        before, after, note = rule
        expressions = facts.get(EXPRESSIONS, b"")
        if (
            facts.get(USERDATA, b"") != note
            or len(expressions) != len(before) + len(_COUNTER) + len(after)
            or not expressions.startswith(before + _COUNTER_HEAD)
            or not expressions.endswith(after)
        ):
            return False
    return True
