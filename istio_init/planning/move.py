"""A move of Istio's rules from one backend's tables to another's, in phases that no connection notices. Pure.

Tables of two backends cannot be written at once, so for some moments packets meet both. In nat the first translation
of a connection counts, whichever table makes it. With TPROXY the second table would take a packet that the first one
captured, and marked, for one of Envoy's own, and save its mark for the connection: the replies to the client would be
routed back into the pod. Which of two tables comes first is up to the kernel. So the new table first captures with
another mark and saves none; the old one stops to capture, and still saves; then the new one saves, too, and the old
one goes. At each moment a packet is captured by at least one table, no table saves the mark of a captured packet, and
one saves the mark of Envoy's connections.

    old tables                          new tables
    captures, saves                     -
    captures, saves                     captures with the transition mark
    saves                               captures with the transition mark
    saves                               captures with the transition mark, saves
    -                                   captures with the transition mark, saves
    -                                   captures, saves: the plan

The empty chain MOVING_CHAIN is in an old table from the first phase on, and in the new mangle table until the last: a
run that finds it finishes the move of one that was killed.
"""

from __future__ import annotations

from istio_init.model.compare import TableChange
from istio_init.model.ownership import own_part
from istio_init.model.placement import merged
from istio_init.model.routing import PolicyRule
from istio_init.model.rules import MOVING_CHAIN, Chain, Jump, Table, ordered
from istio_init.planning.changes import captures
from istio_init.planning.plan import transition_mark
from istio_init.planning.removal import removal
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from istio_init.model.rules import Family, Rule, Ruleset
    from istio_init.planning.changes import Changes, NamespaceState
    from istio_init.planning.plan import Plan

    _Chains: TypeAlias = dict[str, Chain]


class Phase(Record):
    """One write of a move: which backend's tables (empty: the chosen one's), what to write, and the state before."""

    backend: str
    changes: tuple[TableChange, ...]
    before: NamespaceState


def is_unfinished(rulesets: tuple[Ruleset, ...]) -> bool:
    """Whether an earlier run was killed while it moved these rules."""
    return any(table.chain(MOVING_CHAIN) for ruleset in rulesets for table in ruleset.tables)


def phases(
    plan: Plan, current: NamespaceState, changes: Changes, elsewhere: tuple[tuple[str, NamespaceState], ...]
) -> tuple[tuple[Phase, ...], Changes]:
    """The writes that move the rules of other backends, in order, and all changes of routing for them.

    `changes` are those of the chosen backend's tables, whose state is `current`.
    """
    capturing = {
        desired.family: table
        for desired in plan.rulesets
        if (table := desired.table("mangle")) is not None and captures(table)
    }
    if not any(_own(state, family, plan) for family in capturing for _, state in elsewhere):
        capturing = {}
    # All families together: a native table is one for both. Tables that are in place already go through it again.
    written = {(change.family, change.name) for change in changes.tables}
    missing = (
        TableChange(family, "mangle", table, table)
        for family, table in capturing.items()
        if (family, "mangle") not in written
    )
    changes = changes.replace(tables=(*missing, *changes.tables))
    move = _Move(plan, current, changes, elsewhere, frozenset(capturing))
    return tuple(phase for phase in move.phases() if phase.changes), move.routing()


def _captures(state: NamespaceState, family: Family, plan: Plan) -> bool:
    own = _own(state, family, plan)
    return own is not None and captures(own)


def _own(state: NamespaceState, family: Family, plan: Plan) -> Table | None:
    """Istio's part of a state's mangle table."""
    table, desired = state.table(family, "mangle"), plan.ruleset(family)
    return own_part(table, desired.table("mangle") if desired else None) if table else None


class _Move:
    def __init__(
        self,
        plan: Plan,
        current: NamespaceState,
        changes: Changes,
        elsewhere: tuple[tuple[str, NamespaceState], ...],
        shared: frozenset[Family],
    ) -> None:
        """`shared` are the families whose inbound traffic both the old and the new mangle table capture."""
        self._plan, self._changes, self._shared = plan, changes, shared
        self._states: dict[str, NamespaceState] = {"": current, **dict(elsewhere)}
        self._old = tuple(name for name, _ in elsewhere)

    def routing(self) -> Changes:
        """The changes of routing of the whole move."""
        rules = tuple(
            PolicyRule(rule.family, transition_mark(rule.mark), rule.table)
            for rule in self._plan.policy_rules
            if rule.family in self._shared
        )
        add = tuple(rule for rule in rules if rule not in self._states[""].routing)
        drop = (*self._changes.drop, *(rule for rule in rules if rule not in self._changes.drop))
        return self._changes.replace(add=(*self._changes.add, *add), drop=drop)

    def phases(self) -> Iterator[Phase]:
        """The phases in order; each takes the state that the one before it left."""
        for name in self._old:
            yield self._phase(name, self._marked(self._states[name]))
        yield self._phase("", tuple(self._first(change) for change in self._changes.tables))
        for name in self._old:
            yield self._phase(name, tuple(self._released(self._states[name])))
        yield self._phase("", tuple(self._transition(change, saves=True) for change in self._shared_tables()))
        for name in self._old:
            yield self._phase(name, removal(self._states[name], self._plan).tables)
        yield self._phase("", self._shared_tables())

    def _phase(self, backend: str, changes: tuple[TableChange, ...]) -> Phase:
        before = self._states[backend]
        self._states[backend] = _after(before, changes)
        return Phase(backend, changes, before)

    def _shared_tables(self) -> tuple[TableChange, ...]:
        tables = self._changes.tables
        return tuple(change for change in tables if change.name == "mangle" and change.family in self._shared)

    def _first(self, change: TableChange) -> TableChange:
        """The first form of a new table; it saves Envoy's marks only where no old table does."""
        if change not in self._shared_tables():
            return change
        saved = any(_own(self._states[name], change.family, self._plan) for name in self._old)
        return self._transition(change, saves=not saved)

    def _marked(self, state: NamespaceState) -> tuple[TableChange, ...]:
        """One of the old tables, of both families, with the chain that says that a move is under way."""
        if is_unfinished(state.rulesets):
            return ()
        changes = removal(state, self._plan).tables
        name = "nat" if any(change.name == "nat" for change in changes) else changes[0].name

        def marked(chains: _Chains) -> _Chains:
            return {**chains, MOVING_CHAIN: Chain(MOVING_CHAIN, ())}

        return tuple(self._edited(state, change, marked) for change in changes if change.name == name)

    def _released(self, state: NamespaceState) -> Iterator[TableChange]:
        """The old mangle tables without their capture of inbound traffic."""

        def released(chains: _Chains) -> _Chains:
            return {**chains, "PREROUTING": _without(chains["PREROUTING"], Jump("ISTIO_INBOUND"))}

        for change in removal(state, self._plan).tables:
            shared = change.name == "mangle" and change.family in self._shared
            if shared and _captures(state, change.family, self._plan):
                yield self._edited(state, change, released)

    def _edited(self, state: NamespaceState, change: TableChange, make: Callable[[_Chains], _Chains]) -> TableChange:
        """A change of Istio's part of an old table, which keeps its place among other programs' rules."""
        table = state.table(change.family, change.name)
        own = own_part(table, change.unsigned) if table else None
        chains = make({chain.name: chain for chain in own.chains} if own else {})
        desired = Table(change.name, ordered(change.name, chains))
        return TableChange(change.family, change.name, desired, change.unsigned, table)

    def _transition(self, change: TableChange, *, saves: bool) -> TableChange:
        """The new mangle table with the transition mark, and with or without the rule that saves Envoy's mark."""
        from istio_init.model.extensions import SaveMark, SetMark, Tproxy

        def transitional(rule: Rule) -> Rule:
            target = rule.target
            if isinstance(target, SetMark) and target.value in marks:
                return rule.replace(target=target.replace(value=transition_mark(target.value)))
            if isinstance(target, Tproxy):
                return rule.replace(target=target.replace(mark=transition_mark(target.mark)))
            return rule

        table = change.desired or Table(change.name, ())
        marks = {rule.mark for rule in self._plan.policy_rules}
        chains = {MOVING_CHAIN: Chain(MOVING_CHAIN, ())}
        for chain in table.chains:
            rules = tuple(transitional(rule) for rule in chain.rules if saves or not isinstance(rule.target, SaveMark))
            chains[chain.name] = chain.replace(rules=rules)
        return change.replace(desired=Table(table.name, ordered(table.name, chains)))


def _without(chain: Chain, target: Jump) -> Chain:
    return chain.replace(rules=tuple(rule for rule in chain.rules if rule.target != target))


def _after(state: NamespaceState, changes: tuple[TableChange, ...]) -> NamespaceState:
    """The state once the changes are made."""
    for change in changes:
        current = state.table(change.family, change.name) or Table(change.name, ordered(change.name, {}))
        table = merged(current, change.desired, change.unsigned, change.like)
        ruleset = state.ruleset(change.family)
        others = tuple(each for each in ruleset.tables if each.name != change.name)
        rulesets = tuple(each for each in state.rulesets if each.family != change.family)
        state = state.replace(rulesets=(*rulesets, ruleset.replace(tables=(*others, table))))
    return state
