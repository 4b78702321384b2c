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
    from istio_init.model.rules import Family, TableName

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
    from istio_init.model.differences import unpaired

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

    Nothing where the plan is in place; other programs' rules do not count. differences.py has the details.
    """
    for desired_table, current_table in pairs(desired, current):
        own = own_table(desired_table, current_table)
        if own is None:
            yield desired_table.name, True
            continue
        from istio_init.model.differences import drifted_chains

        if any(True for _ in drifted_chains(desired_table, own, current_table)):
            yield desired_table.name, False


def pairs(desired: Ruleset, current: Ruleset) -> Iterator[tuple[Table, Table | None]]:
    """Each table that is wanted or found, as it is wanted and as it is found."""
    for table in desired.tables:
        current_table = current.table(table.name)
        # The identical object: its reader compared it while reading (kernel.Firewall.read).
        if current_table is not table:
            yield table, current_table
    for table in current.tables:
        if not desired.table(table.name):
            yield Table(table.name, ordered(table.name, {})), table


def own_table(desired: Table, current: Table | None) -> Table | None:
    """Istio's part of a found table; None where it has none and should have; the wanted one where none is wanted."""
    own = own_part(current, desired) if current else None
    if own is None:
        return None if any(chain.parts for chain in desired.chains) else desired
    return own


class TableChange(Record):
    """One table to bring to `desired`, or, if that is None, to remove all of Istio's rules from.

    `unsigned` has further rules that count as Istio's without a signature (own_rules). `like` is an earlier state of
    the table, among whose other rules Istio's go back to their places.
    """

    family: Family
    name: TableName
    desired: Table | None
    unsigned: Table | None = None
    like: Table | None = None
