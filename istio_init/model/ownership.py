"""Which rules of a table are Istio's, Istio's part of it, and the edit of a chain that leaves the others alone.

Every rule in one of Istio's chains (OWN_CHAINS) is Istio's. In any other chain a rule is Istio's if it carries this
program's signature (Rule.ours) or jumps to one of Istio's chains; an equal rule without either belongs to another
program. Istio's own program and iptables-restore do not sign: in the tables that they wrote, rules equal to desired
ones count as well, see recognised().

A run in a new pod finds no tables, and does not import this module.
"""

from __future__ import annotations

from istio_init.model.rules import OWN_CHAINS, Chain, Jump, Rule, Table, ordered
from istio_init.record import Record


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

    Such a table has Istio's chains, and no signed rule outside of them. Each desired rule marks one rule: a second
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
