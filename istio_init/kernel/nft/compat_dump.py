"""The tables of iptables-nft as the kernel holds them: rules with their handles, and whether the base chains work.

A base chain without a hook, at another hook or priority or of another type, and every one of a dormant table, is no
built-in chain: packets do not meet it as iptables means it.
"""

from __future__ import annotations

from istio_init.errors import KernelError, shown
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    FAMILIES,
    HEAD,
    NFT_NAME,
    RULE_CHAIN,
    WORD,
    NfnetlinkChannel,
    is_dormant,
    name,
    text,
)
from istio_init.kernel.nft.compat_encode import COUNTS, SIGNED
from istio_init.model.rules import BUILTIN_CHAINS, Chain, Table, ordered
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    from istio_init.kernel.nft.compat_run import Content, RunContents
    from istio_init.model.rules import Family, Hook, Rule, TableName

    # What the messages of a chain's rules say.
    Contents: TypeAlias = list[Content | RunContents]
    # A base chain's type, hook and priority.
    Binding: TypeAlias = tuple[str, int, int]
    # A table, and the contents of its chains.
    Expected: TypeAlias = tuple[Table, dict[str, Contents]]

_TABLE_USE, TABLE_USERDATA = 3, 6  # NFTA_TABLE_*
CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE, _CHAIN_FLAGS, CHAIN_USERDATA = 4, 5, 7, 10, 12  # NFTA_CHAIN_*
HOOK_NUMBER, HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_COMPAT, _RULE_USERDATA = 3, 4, 5, 7  # NFTA_RULE_*
_NESTED = 0x8000
POLICIES = {0: "DROP", 1: "ACCEPT"}
_HANDLES = (12, 24)  # bytes of one or two attributes of 64 bits

# The user data of tables and base chains that this program creates: nft prints it as their comment.
SIGNATURE = bytes((0, 11)) + b"istio-init\0"

# <linux/netfilter.h>'s numbers of hooks, and iptables' priorities by table and hook.
_HOOKS: dict[Hook, int] = {"PREROUTING": 0, "INPUT": 1, "FORWARD": 2, "OUTPUT": 3, "POSTROUTING": 4}
_PRIORITIES: dict[TableName, int] = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_SOURCE_NAT_HOOKS, _SOURCE_NAT = {"INPUT", "POSTROUTING"}, 100


class CompatTable(Record):
    """A table, and by chain the handles of its rules, and their content as a message that adds them has it.

    `broken` are the built-in chains that do not work, each with the reason. `own` are the base chains that this program
    created; `removable` is whether it created the table, and nothing but chains is in it.
    """

    table: Table
    handles: dict[str, tuple[bytes, ...]]
    contents: dict[str, tuple[bytes, ...]] = {}  # noqa: RUF012 (never written)
    broken: dict[str, str] = {}  # noqa: RUF012
    own: frozenset[str] = frozenset()
    removable: bool = True
    dormant: bool = False

    @property
    def effective(self) -> Table:
        """The table, its built-in chains that do not work by names that say so: they are missing as such."""
        if not self.broken:
            return self.table
        renamed = (
            chain.replace(name=self.effective_name(chain.name), policy=None) if chain.name in self.broken else chain
            for chain in self.table.chains
        )
        return Table(self.table.name, ordered(self.table.name, {chain.name: chain for chain in renamed}))

    def effective_name(self, chain: str) -> str:
        """The name of a chain in `effective`."""
        return f"{chain} ({self.broken[chain]})" if chain in self.broken else chain


def binding(table: TableName, hook: Hook) -> Binding:
    """The type, hook and priority that iptables-nft gives a built-in chain."""
    late = table == "nat" and hook in _SOURCE_NAT_HOOKS
    kind = "nat" if table == "nat" else "route" if (table, hook) == ("mangle", "OUTPUT") else "filter"
    return kind, _HOOKS[hook], _SOURCE_NAT if late else _PRIORITIES[table]


def read_tables(
    channel: NfnetlinkChannel, family: Family, expected: Mapping[TableName, Expected] | None = None
) -> dict[TableName, CompatTable]:
    """The tables of iptables-nft that a family has, in the order in which a packet meets them.

    One that is exactly as `expected` is that very Table, without its rules' handles: nothing is decoded. Call it by
    NfnetlinkChannel.consistent(): chains and rules are dumps of their own.
    """
    number = FAMILIES[family]
    bodies = [attributes(data[HEAD.size :]) for data in channel.table_bodies() if data[0] == number]
    tables = {name(attrs[NFT_NAME]): attrs for attrs in bodies}
    if not tables.keys() & BUILTIN_CHAINS.keys():
        return {}
    chains: dict[str, dict[str, dict[int, bytes]]] = {}
    for data in channel.chains(number):
        attrs = attributes(data[HEAD.size :])
        chains.setdefault(name(attrs[NFT_NAME]), {})[name(attrs[CHAIN_NAME])] = attrs
    return {
        table: _read_table(
            channel, (family, table), (tables[table], chains.get(table, {})), (expected or {}).get(table)
        )
        for table in BUILTIN_CHAINS
        if table in tables
    }


def _read_table(
    channel: NfnetlinkChannel,
    place: tuple[Family, TableName],
    messages: tuple[dict[int, bytes], dict[str, dict[int, bytes]]],
    expected: Expected | None,
) -> CompatTable:
    """A table; `messages` are what the kernel says of it, and of its chains."""
    (family, table), (attrs, chains) = place, messages
    dormant = is_dormant(attrs)
    policies = {chain: POLICIES.get(_number(each.get(CHAIN_POLICY, b""), 2)) for chain, each in chains.items()}
    broken = {chain: why for chain, each in chains.items() if (why := _why_broken(table, chain, each, dormant=dormant))}
    dumped = channel.rules(FAMILIES[family], table)
    if expected and not broken and _same_chains(expected[0], policies) and _same_rules(dumped, table, expected[1]):
        return CompatTable(expected[0], {})
    from istio_init.kernel.nft.compat_decode import RuleReader

    rules: dict[str, list[Rule]] = {chain: [] for chain in chains}
    handles: dict[str, list[bytes]] = {chain: [] for chain in chains}
    contents: dict[str, list[bytes]] = {chain: [] for chain in chains}
    reader = RuleReader(family)
    for data in dumped:
        rule = attributes(data[HEAD.size :])
        chain = name(rule[RULE_CHAIN])
        if chain not in rules:
            raise KernelError(f"nftables: {family} {table}: a rule is in the chain {shown(chain)}, which is not there")
        rules[chain].append(reader.unpack(rule))
        handles[chain].append(rule[RULE_HANDLE])
        contents[chain].append(_content(rule))
    values = {
        chain: Chain(chain, tuple(rules[chain]), "ACCEPT" if chain in broken else policies[chain]) for chain in chains
    }
    return CompatTable(
        Table(table, ordered(table, values)),
        {chain: tuple(each) for chain, each in handles.items()},
        {chain: tuple(each) for chain, each in contents.items()},
        broken,
        frozenset(chain for chain, each in chains.items() if each.get(CHAIN_USERDATA) == SIGNATURE),
        attrs.get(TABLE_USERDATA) == SIGNATURE and _number(attrs.get(_TABLE_USE, b"")) == len(chains),
        dormant,
    )


def _same_chains(table: Table, policies: dict[str, str | None]) -> bool:
    """Whether the chains with these policies are those of a table; built-in ones without rules need not exist."""
    chains = {chain.name: chain for chain in table.chains}
    return policies.keys() <= chains.keys() and all(
        policies[name] == chain.policy if name in policies else bool(chain.policy and not chain.count)
        for name, chain in chains.items()
    )


def _same_rules(dumped: list[bytes], table: TableName, expected: Mapping[str, Contents]) -> bool:
    """Whether a dump has these rules in their order, with this program's signature; counters do not count.

    Where it has not, the rules may still mean the same: other kernels dump other defaults.
    """
    heads = {text(NFT_NAME, table) + text(RULE_CHAIN, chain): _each(rules) for chain, rules in expected.items()}
    none: tuple[Content, ...] = ()
    head, upcoming, size = b"", iter(none), 0
    behind, tail = b"", SIGNED
    for data in dumped:
        if not head or not data.startswith(head, HEAD.size):
            head = next((each for each in heads if data.startswith(each, HEAD.size)), b"")
            upcoming, size = heads.get(head, iter(none)), HEAD.size + len(head)
        content = next(upcoming, None)
        if content is None:
            return False
        before, after, _ = content
        if after is not behind:
            behind, tail = after, after + SIGNED
        start = len(data) - len(tail) - len(COUNTS) - len(before)
        # Between the names and the expressions are the rule's handle, and that of the one before it.
        if start - size not in _HANDLES or not data.startswith(before, start) or not data.endswith(tail):
            return False
    return not any(True for rules in heads.values() for _ in rules)


def _each(contents: Contents) -> Iterator[Content]:
    """The content of each rule of a chain."""
    for content in contents:
        if isinstance(content, tuple):
            yield content
        else:
            yield from content


def _content(rule: dict[int, bytes]) -> bytes:
    """What a message has that adds the same rule again."""
    nested = {_RULE_EXPRESSIONS, _RULE_COMPAT}
    kinds = (kind for kind in (_RULE_EXPRESSIONS, _RULE_COMPAT, _RULE_USERDATA) if kind in rule)
    return b"".join(attribute(kind | _NESTED if kind in nested else kind, rule[kind]) for kind in kinds)


def _why_broken(table: TableName, chain: str, attrs: dict[int, bytes], *, dormant: bool) -> str:
    """Why a chain with a built-in one's name does not work as such; empty where it does."""
    hook = next((each for each in BUILTIN_CHAINS[table] if each == chain), None)
    if hook is None:
        return ""
    if dormant:
        return "dormant"
    if CHAIN_HOOK not in attrs:
        return "no hook"
    hooked = attributes(attrs[CHAIN_HOOK])
    number, priority = (_number(hooked.get(kind, b"")) for kind in (HOOK_NUMBER, HOOK_PRIORITY))
    if priority >= 1 << 31:
        priority -= 1 << 32
    actual = name(attrs.get(CHAIN_TYPE, b"")), number, priority
    kind, right, usual = binding(table, hook)
    if actual[1] != right:
        return "another hook"
    if actual[2] != usual:
        return f"priority {priority}"
    return "" if actual[0] == kind else f"type {actual[0]}"


def _number(value: bytes, otherwise: int = 0) -> int:
    return int(WORD.unpack(value)[0]) if len(value) == WORD.size else otherwise
