"""Compares desired tables with current ones: which rules are Istio's, what differs, which edit is needed.

Every rule in one of Istio's chains (OWN_CHAINS) is Istio's. In any other chain a rule is Istio's if it carries this
program's signature (Rule.ours) or jumps to one of Istio's chains; an equal rule without either belongs to another
program. Istio's own program and iptables-restore do not sign: in the tables that they wrote, rules equal to desired
ones count as well, see recognised().
"""

from __future__ import annotations

from istio_init.model.rules import OWN_CHAINS, Chain, Jump, Rule, Ruleset, Table, ordered
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    from istio_init.model.inet import InetRule
    from istio_init.model.rules import Family, TableName, Target

    AnyRule = TypeVar("AnyRule")
    EitherRule = TypeVar("EitherRule", Rule, InetRule)


class Edit(Record):
    """The edit of a chain that may hold other programs' rules too; positions count from 0.

    First delete the rules at `delete` (positions in the current chain, ascending), then insert `top` before
    everything and `block` before the rule that is then at `at` (not counting `top`). An edit that restores a chain
    has `places` instead: for each rule of the block, how many of the remaining rules precede it.
    """

    delete: tuple[int, ...]
    top: tuple[Rule, ...]
    block: tuple[Rule, ...]
    at: int
    places: tuple[int, ...] = ()

    def preceding(self) -> tuple[int, ...]:
        """For each new rule, in order, how many of the remaining rules precede it."""
        return (*[0] * len(self.top), *(self.places or [self.at] * len(self.block)))


class Difference(Record):
    """One difference: a rule is `missing`, `unexpected` or `misplaced`; its number counts from 1.

    `rule` is None for a whole chain or, if the chain name is empty, a whole table.
    """

    kind: str
    table: str
    chain: str
    number: int = 0
    rule: Rule | None = None


def recognised(current: Table, desired: Table | None) -> Table:
    """Mark the rules that equal `desired` ones as Istio's, if the table was written by a program that does not sign.

    Such a table has Istio's chains, and no signed rule outside of them. Each wanted rule marks one rule: a second
    equal rule belongs to another program. The claims of a KnownTable (claims.py) are marked in any table.
    """
    outside = [chain for chain in current.chains if chain.name not in OWN_CHAINS]
    signed = any(rule.ours for chain in outside for rule in chain.rules)
    if claims := getattr(desired, "claims", ()):
        from istio_init.model.claims import marked

        current = marked(current, claims)
    if desired is None or signed or len(outside) == len(current.chains):
        return current
    return current.replace(chains=tuple(_recognised(chain, desired.chain(chain.name)) for chain in current.chains))


def _recognised(current: Chain, desired: Chain | None) -> Chain:
    if desired is None or current.name in OWN_CHAINS:
        return current
    strangers = {number for number, _ in unpaired(current.rules, desired.rules)}
    rules = (rule if number in strangers else rule.replace(ours=True) for number, rule in enumerate(current.rules, 1))
    return current.replace(rules=tuple(rules))


def own_rules(current: Chain) -> tuple[int, ...]:
    """The positions (from 0) of Istio's rules in a chain of a recognised() table, ascending."""
    if current.name in OWN_CHAINS:
        return tuple(range(len(current.rules)))
    return tuple([number for number, rule in enumerate(current.rules) if _claimed(rule)])


def _claimed(rule: Rule) -> bool:
    return rule.ours or (isinstance(rule.target, Jump) and rule.target.chain in OWN_CHAINS)


def edit(current: Chain, desired: Chain | None, like: Chain | None = None) -> Edit:
    """The edit that brings a chain of a recognised() table to the plan, or with None removes Istio's rules from it.

    Other programs' rules are left untouched. Istio's rules go where the first of them was, else to the end; with
    `like`, the chain of a recognised() earlier state, each goes back to its place among the other rules of it.
    """
    delete = own_rules(current)
    if like is not None and desired is not None:
        from istio_init.model.placement import places

        return Edit(delete, (), desired.rules, 0, places(current, desired, like))
    rules = desired.rules if desired else ()
    inserted = desired.inserted if desired else 0
    remaining = len(current.rules) - len(delete)
    # The block keeps its place among other programs' rules: behind those before Istio's first appended rule. That
    # is every rule before it, except Istio's own `inserted` ones.
    at = delete[inserted] - inserted if len(delete) > inserted else remaining
    return Edit(delete, rules[:inserted], rules[inserted:], at)


def chain_of(table: Table | None, name: str) -> Chain | None:
    """A chain of a table that may not exist."""
    return table.chain(name) if table is not None else None


def own_part(current: Table, desired: Table | None = None) -> Table | None:
    """Istio's part of a table, as a table of its own; None if there is none."""
    chains = {}
    for chain in recognised(current, desired).chains:
        if chain.name in OWN_CHAINS:
            chains[chain.name] = chain
        elif own := own_rules(chain):
            if len(own) == len(chain.rules):
                chains[chain.name] = chain
            else:
                rules = tuple([chain.rules[number] for number in own])
                chains[chain.name] = chain.replace(rules=rules, inserted=_leading(own))
    if not chains:
        return None
    if claims := getattr(desired, "claims", ()):
        from istio_init.model.claims import KnownTable

        return KnownTable(current.name, ordered(current.name, chains), claims)
    return Table(current.name, ordered(current.name, chains))


def _leading(positions: tuple[int, ...]) -> int:
    """How many of the positions are the first of their chain: 0, 1, 2 and so on."""
    return next((count for count, number in enumerate(positions) if number != count), len(positions))


def drifted_tables(desired: Ruleset, current: Ruleset) -> Iterator[tuple[TableName, bool]]:
    """The tables in which Istio rules are not as wanted, each with whether it has no Istio rules at all.

    Nothing where the plan is in place; other programs' rules do not count. `differences` has the details.
    """
    for desired_table, current_table in _pairs(desired, current):
        own = _own(desired_table, current_table)
        if own is None:
            yield desired_table.name, True
        elif any(True for _ in _drifted_chains(desired_table, own, current_table)):
            yield desired_table.name, False


def differences(desired: Ruleset, current: Ruleset) -> Iterator[Difference]:
    """What differs in Istio's rules, rule by rule; nothing where the plan is in place."""
    for desired_table, current_table in _pairs(desired, current):
        own = _own(desired_table, current_table)
        if own is None:
            yield Difference("missing", desired_table.name, "")
            continue
        for chain, current_chain in _drifted_chains(desired_table, own, current_table):
            if current_chain is None:
                yield Difference("missing", desired_table.name, chain.name)
            elif desired_table.chain(chain.name) is None and chain.name in OWN_CHAINS:
                yield Difference("unexpected", desired_table.name, chain.name)
            else:
                yield from _chain_differences(desired_table.name, chain, current_chain)


def _pairs(desired: Ruleset, current: Ruleset) -> Iterator[tuple[Table, Table | None]]:
    """Each table that is wanted or found, as it is wanted and as it is found."""
    for table in desired.tables:
        current_table = current.table(table.name)
        # The identical object: its reader compared it while reading (kernel.Firewall.read).
        if current_table is not table:
            yield table, current_table
    for table in current.tables:
        if not desired.table(table.name):
            yield Table(table.name, ordered(table.name, {})), table


def _own(desired: Table, current: Table | None) -> Table | None:
    """Istio's part of a found table; None where it has none and should have; the wanted one where none is wanted."""
    own = own_part(current, desired) if current else None
    if own is None:
        return None if any(chain.parts for chain in desired.chains) else desired
    return own


def _drifted_chains(desired: Table, own: Table, current: Table | None) -> Iterator[tuple[Chain, Chain | None]]:
    """The chains that differ, as wanted (empty where they are not) and as found (None where they are not)."""
    for chain in desired.chains:
        if chain.inserted > chain.count and _is_preceded(chain_of(current, chain.name)):
            yield chain, own.chain(chain.name)
    if own == desired:
        return
    for chain in desired.chains:
        current_chain = own.chain(chain.name)
        if current_chain is None or not (
            current_chain.rules == chain.rules or equivalent(chain.rules, current_chain.rules)
        ):
            yield chain, current_chain
    for current_chain in own.chains:
        if desired.chain(current_chain.name) is None:
            yield Chain(current_chain.name, ()), current_chain


def _is_preceded(current: Chain | None) -> bool:
    """Whether another program's rule precedes one of Istio's."""
    if current is None:
        return False
    own = own_rules(current)
    return bool(own) and own[-1] >= len(own)


def _chain_differences(table: str, desired: Chain, current: Chain) -> Iterator[Difference]:
    from istio_init.model.alignment import aligned

    if current.rules == desired.rules:  # in order, but behind other programs' rules
        yield Difference("misplaced", table, desired.name, 1, desired.rules[0])
        return
    signs = tuple(aligned(current.rules, desired.rules))
    added = {at: desired.rules[at] for sign, at in signs if sign == "+"}
    removed = {at: current.rules[at] for sign, at in signs if sign == "-"}
    moved = _moved(added, removed)
    # Rules that were read from a native set have no order: a move is certain only where nothing else differs.
    kinds = (("missing", added), ("unexpected", removed), ("misplaced", {} if added or removed else moved))
    for kind, rules in kinds:
        yield from (Difference(kind, table, desired.name, at + 1, rule) for at, rule in rules.items())


def _moved(added: dict[int, Rule], removed: dict[int, Rule]) -> dict[int, Rule]:
    """Takes the rules that are in both out of both; returns them by the position where they are wanted."""
    moved = {}
    for at, rule in tuple(added.items()):
        old = next((position for position, other in removed.items() if other == rule), None)
        if old is not None:
            moved[at] = added.pop(at)
            del removed[old]
    return moved


def equivalent(rules: tuple[EitherRule, ...], others: tuple[EitherRule, ...]) -> bool:
    """Whether two chains differ at most in the order of adjacent rules with the same target.

    Whichever of them a packet meets first, the same happens to it: the order of ports in a list is no drift.
    """
    return _runs(rules) == _runs(others)


def _runs(rules: tuple[EitherRule, ...]) -> list[tuple[Target, dict[EitherRule, int]]]:
    """The rules in runs of the same target: that target, and how often each rule is there."""
    runs: list[tuple[Target, dict[EitherRule, int]]] = []
    for rule in rules:
        if not runs or runs[-1][0] != rule.target:
            runs.append((rule.target, {}))
        run = runs[-1][1]
        run[rule] = run.get(rule, 0) + 1
    return runs


def unpaired(rules: tuple[AnyRule, ...], others: tuple[AnyRule, ...]) -> Iterator[tuple[int, AnyRule]]:
    """The rules, numbered from 1, without a counterpart among the others."""
    unmatched: dict[AnyRule, int] = {}
    for rule in others:
        unmatched[rule] = unmatched.get(rule, 0) + 1
    for number, rule in enumerate(rules, 1):
        if unmatched.get(rule):
            unmatched[rule] -= 1
        else:
            yield number, rule


class TableChange(Record):
    """One table to bring to `desired`, or, if that is None, to remove all of Istio's rules from.

    `known` has further rules that count as Istio's without a signature (own_rules). `like` is an earlier state of
    the table, among whose other rules Istio's go back to their places.
    """

    family: Family
    name: TableName
    desired: Table | None
    known: Table | None = None
    like: Table | None = None
