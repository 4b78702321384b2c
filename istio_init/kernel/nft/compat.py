"""The Firewall of iptables-nft nodes: the tables that iptables-nft keeps in nftables, edited through netlink.

All tables of both families are written in one batch. Others' rules are not touched: ours are put in and taken
out between them, by their handles. The kernel takes a batch only if nobody has written since the tables were
read; where somebody has, everything is read and worked out anew. No library and no program is needed.
"""

from __future__ import annotations

import errno

from istio_init.errors import KernelError, shown
from istio_init.kernel.netlink.batch import BatchChannel
from istio_init.kernel.netlink.channel import AnswerLost, attribute, attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELCHAIN,
    DELRULE,
    DELTABLE,
    FAMILIES,
    HEAD,
    NEWCHAIN,
    NEWRULE,
    NEWTABLE,
    NFT_NAME,
    RULE_CHAIN,
    NfnetlinkChannel,
    body,
    name,
    text,
    word,
)
from istio_init.kernel.nft.compat_decode import RuleReader
from istio_init.kernel.nft.compat_encode import RuleWriter
from istio_init.model.compare import Edit, TableChange, chain_of, edit, recognised
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS, Chain, Ruleset, Table, ordered
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from istio_init.model.rules import Family, Hook, Rule, TableName

    Message: TypeAlias = tuple[int, int, bytes]

NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800
_CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 4, 5, 7  # NFTA_CHAIN_*
RULE_HANDLE, _RULE_POSITION = 3, 6  # NFTA_RULE_*
_NESTED = 0x8000
_POLICIES = {0: "DROP", 1: "ACCEPT"}

# <linux/netfilter.h>'s numbers of hooks, and iptables' priorities by table and hook.
_HOOKS: dict[Hook, int] = {"PREROUTING": 0, "INPUT": 1, "FORWARD": 2, "OUTPUT": 3, "POSTROUTING": 4}
_PRIORITIES: dict[TableName, int] = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_SOURCE_NAT_HOOKS, _SOURCE_NAT = {"INPUT", "POSTROUTING"}, 100

# How often a batch is made anew because somebody else wrote meanwhile.
_ATTEMPTS = 50


class Found(Record):
    """A table that stands, and by chain the handles of its rules."""

    table: Table
    handles: dict[str, tuple[bytes, ...]]


class IptablesNft:
    """kernel.Firewall over iptables-nft's tables, for the calling thread's network namespace."""

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:  # noqa: ARG002 (nothing to gain)
        """See kernel.Firewall."""
        with NfnetlinkChannel() as channel:
            _, tables = channel.consistent(lambda: found_tables(channel, family))
            return Ruleset(family, tuple([found.table for found in tables.values()]))

    def replace(self, family: Family, wanted: Table) -> None:
        """See kernel.Firewall."""
        self.write((TableChange(family, wanted.name, wanted),))

    def remove(self, family: Family, name: TableName, wanted: Table | None = None) -> None:
        """See kernel.Firewall. A table in which nothing is left goes, too."""
        self.write((TableChange(family, name, None, wanted),))

    def write(self, changes: tuple[TableChange, ...]) -> None:
        """See kernel.Transactional."""
        for _ in range(_ATTEMPTS):
            with BatchChannel() as channel:
                families = {change.family for change in changes}
                generation, found = channel.consistent(
                    lambda: {family: found_tables(channel, family) for family in families}  # noqa: B023 (called at once)
                )
                messages = [
                    each for change in changes for each in _messages(change, found[change.family].get(change.name))
                ]
                if not messages:
                    return
                try:
                    channel.commit(messages, generation)
                except AnswerLost:
                    continue  # it may have been committed: what is missing is found by reading again
                except OSError as refused:
                    if refused.errno != errno.ERESTART:
                        from istio_init.kernel.nft.compat_refusal import explain

                        raise explain(refused, _names(changes), messages) from refused
                else:
                    return
        raise KernelError(
            f"nftables: somebody else wrote {_ATTEMPTS} times while {_names(changes)} were being edited; nothing was "
            "written; find out who, and run again"
        )


def found_tables(channel: NfnetlinkChannel, family: Family) -> dict[TableName, Found]:
    """The tables of iptables-nft's that a family has, in the order in which a packet meets them.

    To be called by NfnetlinkChannel.consistent(): chains and rules are dumps of their own.
    """
    number = FAMILIES[family]
    there = {table for owner, table in channel.tables() if owner == number}
    if not there.intersection(BUILTIN_CHAINS):
        return {}
    policies: dict[str, dict[str, str | None]] = {}
    for data in channel.chains(number):
        said = attributes(data[HEAD.size :])
        policy = _POLICIES[int.from_bytes(said[_CHAIN_POLICY], "big")] if _CHAIN_POLICY in said else None
        policies.setdefault(name(said[NFT_NAME]), {})[name(said[CHAIN_NAME])] = policy
    return {
        table: _table(channel, family, table, policies.get(table, {})) for table in BUILTIN_CHAINS if table in there
    }


def _table(channel: NfnetlinkChannel, family: Family, table: TableName, policies: dict[str, str | None]) -> Found:
    rules: dict[str, list[Rule]] = {chain: [] for chain in policies}
    handles: dict[str, list[bytes]] = {chain: [] for chain in policies}
    reader = RuleReader(family)
    for data in channel.rules(FAMILIES[family], table):
        said = attributes(data[HEAD.size :])
        chain = name(said[RULE_CHAIN])
        if chain not in rules:
            raise KernelError(f"nftables: {family} {table}: a rule is in the chain {shown(chain)}, which is not there")
        rules[chain].append(reader.unpack(said))
        handles[chain].append(said[RULE_HANDLE])
    chains = {chain: Chain(chain, tuple(rules[chain]), policy) for chain, policy in policies.items()}
    return Found(Table(table, ordered(table, chains)), {chain: tuple(each) for chain, each in handles.items()})


def _messages(change: TableChange, found: Found | None) -> Iterator[Message]:
    """What brings one table to what is wanted: new chains, old rules out, new ones in, old chains out."""
    family, table, wanted, known = change.family, change.name, change.wanted, change.known
    like = recognised(change.like, wanted or known) if change.like else None
    if found is None:
        if wanted is None:
            return
        yield NEWTABLE, NLM_F_CREATE, body(FAMILIES[family], text(NFT_NAME, table))
        found = Found(Table(table, ()), {})
    standing = set(found.handles)
    scribe = _Scribe(family, table)
    for chain in wanted.chains if wanted else ():
        if chain.name not in standing:
            yield scribe.chain(chain)
    edits = {
        each.name: edit(each, chain_of(wanted, each.name), chain_of(like, each.name))
        for each in recognised(found.table, wanted or known).chains
        if each.name not in OWN_CHAINS
    }
    for chain in found.table.chains:
        if chain.name in OWN_CHAINS:
            yield scribe.flush(chain.name)
        else:
            for position in edits[chain.name].delete:
                yield scribe.deletion(chain.name, found.handles[chain.name][position])
    for chain in wanted.chains if wanted else ():
        edited = edits.get(chain.name) or Edit((), (), chain.rules, 0)
        kept = [
            handle
            for position, handle in enumerate(found.handles.get(chain.name, ()))
            if chain.name not in OWN_CHAINS and position not in edited.delete
        ]
        yield from scribe.rules(chain.name, edited, kept)
    for chain in found.table.chains:
        if chain.name in OWN_CHAINS and (wanted is None or wanted.chain(chain.name) is None):
            yield DELCHAIN, 0, scribe.place(text(CHAIN_NAME, chain.name))
    if wanted is None and _is_left_empty(found, edits):
        yield DELTABLE, 0, body(FAMILIES[family], text(NFT_NAME, table))


def _is_left_empty(found: Found, edits: dict[str, Edit]) -> bool:
    """Whether nothing but built-in chains that accept everything remains."""
    return all(
        chain.policy == "ACCEPT" and len(chain.rules) == len(edits[chain.name].delete)
        for chain in found.table.chains
        if chain.name not in OWN_CHAINS
    )


class _Scribe:
    """Writes messages about one table."""

    def __init__(self, family: Family, table: TableName) -> None:
        self._family, self._table = family, table
        self._pack = RuleWriter(family).pack

    def place(self, *parts: bytes) -> bytes:
        """The body of a message about something in the table."""
        return body(FAMILIES[self._family], text(NFT_NAME, self._table), *parts)

    def chain(self, chain: Chain) -> Message:
        """A new chain; a built-in one is hooked in as iptables-nft has it."""
        hook = next((hook for hook in BUILTIN_CHAINS[self._table] if hook == chain.name), None)
        if hook is None:
            return NEWCHAIN, NLM_F_CREATE, self.place(text(CHAIN_NAME, chain.name))
        late = self._table == "nat" and hook in _SOURCE_NAT_HOOKS
        priority = _SOURCE_NAT if late else _PRIORITIES[self._table]
        kind = "nat" if self._table == "nat" else "route" if (self._table, hook) == ("mangle", "OUTPUT") else "filter"
        policy = next(number for number, word in _POLICIES.items() if word == chain.policy)
        facts = (
            text(CHAIN_NAME, chain.name),
            attribute(_CHAIN_HOOK | _NESTED, word(1, _HOOKS[hook]) + word(2, priority)),
            word(_CHAIN_POLICY, policy),
            text(_CHAIN_TYPE, kind),
        )
        return NEWCHAIN, NLM_F_CREATE, self.place(*facts)

    def flush(self, chain: str) -> Message:
        """All rules of a chain taken out."""
        return DELRULE, 0, self.place(text(RULE_CHAIN, chain))

    def deletion(self, chain: str, handle: bytes) -> Message:
        """One rule taken out."""
        return DELRULE, 0, self.place(text(RULE_CHAIN, chain), attribute(RULE_HANDLE, handle))

    def rules(self, chain: str, change: Edit, kept: list[bytes]) -> Iterator[Message]:
        """The new rules of a chain, between those of others that stay, whose handles are `kept`."""
        head = text(RULE_CHAIN, chain)
        for rule, count in zip((*change.top, *change.block), change.preceding(), strict=True):
            before = attribute(_RULE_POSITION, kept[count]) if count < len(kept) else b""
            flags = NLM_F_CREATE if before else NLM_F_CREATE | NLM_F_APPEND
            yield NEWRULE, flags, self.place(head, self._pack(rule), before)


def _names(changes: Sequence[TableChange]) -> str:
    return ", ".join(f"{change.family} {change.name}" for change in changes)
