"""The Firewall of iptables-nft nodes: edits the tables that iptables-nft keeps in nftables, through netlink.

All tables of both families are written in one batch. Other programs' rules are left untouched: Istio rules are inserted
and deleted between them, by handle. The kernel accepts a batch only if no other program has written since the tables
were read; otherwise they are read again and a new batch is made. No library and no program is needed.
"""

from __future__ import annotations

import istio_init.kernel.host.error_numbers as errno
from istio_init.errors import KernelError
from istio_init.kernel.netlink.batch import BatchChannel, after
from istio_init.kernel.netlink.channel import AnswerLost, attribute
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELCHAIN,
    DELRULE,
    DELTABLE,
    FAMILIES,
    NEWCHAIN,
    NEWRULE,
    NEWTABLE,
    NFT_NAME,
    RULE_CHAIN,
    TABLE_FLAGS,
    NfnetlinkChannel,
    body,
    text,
    word,
)
from istio_init.kernel.nft.compat_dump import (
    CHAIN_HOOK,
    CHAIN_POLICY,
    CHAIN_TYPE,
    CHAIN_USERDATA,
    HOOK_NUMBER,
    HOOK_PRIORITY,
    POLICIES,
    RULE_HANDLE,
    SIGNATURE,
    TABLE_USERDATA,
    CompatTable,
    binding,
    read_tables,
)
from istio_init.kernel.nft.compat_encode import COUNTS, SIGNED, RuleWriter
from istio_init.model.compare import TableChange
from istio_init.model.rules import BUILTIN_CHAINS, OWN_CHAINS, Chain, Jump, Ruleset, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from istio_init.kernel.netlink.batch import Message, MessageRun
    from istio_init.kernel.nft.compat_dump import Contents, Expected
    from istio_init.model.ownership import Edit
    from istio_init.model.rules import Family, TableName

NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800
_RULE_POSITION = 6  # NFTA_RULE_POSITION
_NESTED = 0x8000

# How often a batch is made anew because another program wrote meanwhile.
_ATTEMPTS = 50


class IptablesNft:
    """kernel.Firewall over iptables-nft's tables, for the calling thread's network namespace."""

    def __init__(self) -> None:
        # A plan is compared, written and compared again: its chains are packed once.
        self._contents: dict[tuple[int, Family], tuple[Chain, Contents]] = {}
        # What families without any table hold since this object has written to them, and the generation that says so:
        # the kernel acknowledged all of it, and every other writer would have changed the generation.
        self._committed: tuple[int, dict[Family, tuple[Table, ...]]] = 0, {}

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """See kernel.Firewall."""
        expected = {table.name: self._expected(table, family) for table in expecting.tables} if expecting else {}
        with NfnetlinkChannel() as channel:
            generation = channel.generation()
            if generation == self._committed[0] and family in self._committed[1]:
                return Ruleset(family, self._committed[1][family])
            _, tables = channel.consistent(lambda: read_tables(channel, family, expected), generation)
            return Ruleset(family, tuple([table.effective for table in tables.values()]))

    def _expected(self, table: Table, family: Family) -> Expected:
        return table, {chain.name: self._pack(chain, family) for chain in table.chains}

    def _pack(self, chain: Chain, family: Family) -> Contents:
        packed = self._contents.get((id(chain), family))
        if packed is None:
            packed = self._contents[id(chain), family] = chain, RuleWriter(family).contents(chain.parts)
        return packed[1]

    def replace(self, family: Family, desired: Table) -> None:
        """See kernel.Firewall."""
        self.write((TableChange(family, desired.name, desired),))

    def remove(self, family: Family, name: TableName, unsigned: Table | None = None) -> None:
        """See kernel.Firewall. A table in which nothing is left goes, too."""
        self.write((TableChange(family, name, None, unsigned),))

    def write(self, changes: tuple[TableChange, ...]) -> None:
        """See kernel.Transactional."""
        for _ in range(_ATTEMPTS):
            with BatchChannel() as channel:
                families = {change.family for change in changes}
                generation, tables = channel.consistent(
                    lambda: {family: read_tables(channel, family) for family in families}  # noqa: B023 (called at once)
                )
                messages = [
                    each
                    for change in changes
                    for each in _messages(change, tables[change.family].get(change.name), self._pack)
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
                    self._committed = after(generation), dict(_committed_tables(changes, tables))
                    return
        raise KernelError(
            f"nftables: other programs wrote {_ATTEMPTS} times while {_names(changes)} were being edited; nothing was "
            "written; stop them, and run again"
        )


def _committed_tables(
    changes: tuple[TableChange, ...], before: Mapping[Family, Mapping[TableName, CompatTable]]
) -> Iterator[tuple[Family, tuple[Table, ...]]]:
    """What the families hold after a commit that had no table before."""
    for family, tables in before.items():
        if not tables:
            written = {change.name: change.desired for change in changes if change.family == family and change.desired}
            yield family, tuple([written[name] for name in BUILTIN_CHAINS if name in written])


def _messages(
    change: TableChange, current: CompatTable | None, pack: Callable[[Chain, Family], Contents]
) -> Iterator[Message | MessageRun]:
    """The messages that make a change: new chains, old rules out, new ones in, old chains out."""
    family, table, desired = change.family, change.name, change.desired
    if current is None:
        if desired is None:
            return
        signed = attribute(TABLE_USERDATA, SIGNATURE)
        yield NEWTABLE, NLM_F_CREATE, body(FAMILIES[family], text(NFT_NAME, table), signed)
        current = CompatTable(Table(table, ()), {})
    scribe = _Scribe(family, table)
    edits = _edits(change, current.table) if current.table.chains else {}
    if desired is not None and current.dormant:
        yield NEWTABLE, 0, scribe.place(word(TABLE_FLAGS, 0))
    for chain in desired.chains if desired else ():
        if chain.name not in current.handles:
            yield scribe.chain(chain)
    yield from _deletions(current, edits, scribe)
    for chain in desired.chains if desired else ():
        if chain.name in edits:
            yield from _additions(current, chain, edits[chain.name], scribe)
        else:
            yield from scribe.appended(chain.name, pack(chain, family))
    for chain in current.table.chains:
        if chain.name in OWN_CHAINS and (desired is None or desired.chain(chain.name) is None):
            yield DELCHAIN, 0, scribe.place(text(CHAIN_NAME, chain.name))
    if desired is None:
        yield from _left_empty(current, edits, scribe)


def _edits(change: TableChange, current: Table) -> dict[str, Edit]:
    """How the chains are to be edited in which other programs may have rules, too. A new pod has none."""
    from istio_init.model.ownership import chain_of, edit, recognised

    istio_rules = change.desired or change.unsigned
    like = recognised(change.like, istio_rules) if change.like else None
    return {
        each.name: edit(each, chain_of(change.desired, each.name), chain_of(like, each.name))
        for each in recognised(current, istio_rules).chains
        if each.name not in OWN_CHAINS
    }


def _deletions(current: CompatTable, edits: dict[str, Edit], scribe: _Scribe) -> Iterator[Message]:
    """All of Istio's rules out."""
    for chain in current.table.chains:
        if chain.name in OWN_CHAINS:
            yield scribe.flush(chain.name)
        else:
            for position in edits[chain.name].delete:
                yield scribe.deletion(chain.name, current.handles[chain.name][position])


def _additions(current: CompatTable, desired: Chain, edited: Edit, scribe: _Scribe) -> Iterator[Message]:
    """A chain's new rules, between those of other programs that stay."""
    if desired.name in current.broken and not current.dormant:
        yield from scribe.rebuild(current, desired, edited)
    else:
        handles = enumerate(current.handles.get(desired.name, ()))
        kept = [handle for position, handle in handles if position not in edited.delete]
        yield from scribe.rules(desired.name, edited, kept)


def _left_empty(current: CompatTable, edits: dict[str, Edit], scribe: _Scribe) -> Iterator[Message]:
    """What of this program's is left without use: base chains without rules, or the whole table with nothing else."""
    others = [chain for chain in current.table.chains if chain.name not in OWN_CHAINS and chain.name in current.handles]
    empty = [
        chain.name for chain in others if chain.policy == "ACCEPT" and len(chain.rules) == len(edits[chain.name].delete)
    ]
    if current.removable and len(empty) == len(others):
        yield DELTABLE, 0, scribe.place()
        return
    jumps = {rule.target.chain for chain in others for rule in chain.rules if isinstance(rule.target, Jump)}
    for chain in empty:
        if chain in current.own and chain not in jumps:
            yield DELCHAIN, 0, scribe.place(text(CHAIN_NAME, chain))


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
        kind, number, priority = binding(self._table, hook)
        policy = next(number for number, word in POLICIES.items() if word == chain.policy)
        facts = (
            text(CHAIN_NAME, chain.name),
            attribute(CHAIN_HOOK | _NESTED, word(HOOK_NUMBER, number) + word(HOOK_PRIORITY, priority)),
            word(CHAIN_POLICY, policy),
            text(CHAIN_TYPE, kind),
            attribute(CHAIN_USERDATA, SIGNATURE),
        )
        return NEWCHAIN, NLM_F_CREATE, self.place(*facts)

    def rebuild(self, current: CompatTable, chain: Chain, edited: Edit) -> Iterator[Message]:
        """A built-in chain made anew, with the right hook: a hook can't be changed. Other programs' rules are kept."""
        existing = current.table.chain(chain.name)
        rules = [each for at, each in enumerate(current.contents[chain.name]) if at not in edited.delete]
        for number, (rule, count) in enumerate(zip((*edited.top, *edited.block), edited.preceding(), strict=True)):
            rules.insert(number + count, self._pack(rule))
        yield self.flush(chain.name)
        yield DELCHAIN, 0, self.place(text(CHAIN_NAME, chain.name))
        yield self.chain(chain.replace(policy=existing.policy if existing else chain.policy))
        for content in rules:
            yield NEWRULE, NLM_F_CREATE | NLM_F_APPEND, self.place(text(RULE_CHAIN, chain.name), content)

    def flush(self, chain: str) -> Message:
        """All rules of a chain taken out."""
        return DELRULE, 0, self.place(text(RULE_CHAIN, chain))

    def deletion(self, chain: str, handle: bytes) -> Message:
        """One rule taken out."""
        return DELRULE, 0, self.place(text(RULE_CHAIN, chain), attribute(RULE_HANDLE, handle))

    def appended(self, chain: str, contents: Contents) -> Iterator[Message | MessageRun]:
        """All rules of a chain that has none."""
        head, flags = self.place(text(RULE_CHAIN, chain)), NLM_F_CREATE | NLM_F_APPEND
        for content in contents:
            if isinstance(content, tuple):
                before, behind, compat = content
                yield NEWRULE, flags, b"".join((head, before, COUNTS, behind, compat, SIGNED))
            else:
                yield content.messages(NEWRULE, flags, head, COUNTS, SIGNED)

    def rules(self, chain: str, change: Edit, kept: list[bytes]) -> Iterator[Message]:
        """The new rules of a chain, between other programs' rules, which stay, whose handles are `kept`."""
        head = text(RULE_CHAIN, chain)
        for rule, count in zip((*change.top, *change.block), change.preceding(), strict=True):
            before = attribute(_RULE_POSITION, kept[count]) if count < len(kept) else b""
            flags = NLM_F_CREATE if before else NLM_F_CREATE | NLM_F_APPEND
            yield NEWRULE, flags, self.place(head, self._pack(rule), before)


def _names(changes: Sequence[TableChange]) -> str:
    return ", ".join(f"{change.family} {change.name}" for change in changes)
