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
    everything and `block` before the rule that is then at `at` (not counting `top`).
    """

    delete: tuple[int, ...]
    top: tuple[Rule, ...]
    block: tuple[Rule, ...]
    at: int


class Difference(Record):
    """One difference: a rule is `missing`, `unexpected` or `misplaced`; its number counts from 1.

    `rule` is None for a whole chain or, if the chain name is empty, a whole table.
    """

    kind: str
    table: str
    chain: str
    number: int = 0
    rule: Rule | None = None


def recognised(found: Table, wanted: Table | None) -> Table:
    """Mark the rules that equal `wanted` ones as Istio's, if the table was written by a program that does not sign.

    Such a table has Istio's chains, and no signed rule outside of them. Each wanted rule marks one rule: a second
    equal rule belongs to another program.
    """
    outside = [chain for chain in found.chains if chain.name not in OWN_CHAINS]
    signed = any(rule.ours for chain in outside for rule in chain.rules)
    if wanted is None or signed or len(outside) == len(found.chains):
        return found
    return found.replace(chains=tuple(_recognised(chain, wanted.chain(chain.name)) for chain in found.chains))


def _recognised(found: Chain, wanted: Chain | None) -> Chain:
    if wanted is None or found.name in OWN_CHAINS:
        return found
    strangers = {number for number, _ in unpaired(found.rules, wanted.rules)}
    rules = (rule if number in strangers else rule.replace(ours=True) for number, rule in enumerate(found.rules, 1))
    return found.replace(rules=tuple(rules))


def own_rules(found: Chain) -> tuple[int, ...]:
    """The positions (from 0) of Istio's rules in a chain of a recognised() table, ascending."""
    if found.name in OWN_CHAINS:
        return tuple(range(len(found.rules)))
    return tuple([number for number, rule in enumerate(found.rules) if _claimed(rule)])


def _claimed(rule: Rule) -> bool:
    return rule.ours or (isinstance(rule.target, Jump) and rule.target.chain in OWN_CHAINS)


def edit(found: Chain, wanted: Chain | None) -> Edit:
    """The edit that brings a chain of a recognised() table to the plan, or with None removes Istio's rules from it.

    Other programs' rules are left untouched. Istio's rules go where the first of them was, else to the end.
    """
    delete = own_rules(found)
    rules = wanted.rules if wanted else ()
    inserted = wanted.inserted if wanted else 0
    kept = len(found.rules) - len(delete)
    # The block keeps its place among other programs' rules: behind those before Istio's first appended rule. That
    # is every rule before it, except Istio's own `inserted` ones.
    at = delete[inserted] - inserted if len(delete) > inserted else kept
    return Edit(delete, rules[:inserted], rules[inserted:], at)


def own_part(found: Table, wanted: Table | None = None) -> Table | None:
    """Istio's part of a table, as a table of its own; None if there is none."""
    chains = {}
    for chain in recognised(found, wanted).chains:
        if chain.name in OWN_CHAINS:
            chains[chain.name] = chain
        elif own := own_rules(chain):
            if len(own) == len(chain.rules):
                chains[chain.name] = chain
            else:
                rules = tuple([chain.rules[number] for number in own])
                chains[chain.name] = chain.replace(rules=rules, inserted=_leading(own))
    return Table(found.name, ordered(found.name, chains)) if chains else None


def _leading(positions: tuple[int, ...]) -> int:
    """How many of the positions are the first of their chain: 0, 1, 2 and so on."""
    return next((count for count, number in enumerate(positions) if number != count), len(positions))


def differences(wanted: Ruleset, found: Ruleset) -> Iterator[Difference]:
    """The differences between Istio's rules in `found` and `wanted`; none if the plan is in place."""
    for table in wanted.tables:
        yield from _table_differences(table, found.table(table.name))
    for table in found.tables:
        if not wanted.table(table.name):
            empty = Table(table.name, ordered(table.name, {}))
            yield from _table_differences(empty, table)


def _table_differences(wanted: Table, found: Table | None) -> Iterator[Difference]:
    if found is wanted:
        return  # the reader has compared them already (kernel.Firewall.read)
    own = own_part(found, wanted) if found else None
    if own is None:
        if any(chain.parts for chain in wanted.chains):
            yield Difference("missing", wanted.name, "")
        return
    if own == wanted:
        return
    for chain in wanted.chains:
        there = own.chain(chain.name)
        if there is None:
            yield Difference("missing", wanted.name, chain.name)
        elif there.rules != chain.rules:
            yield from _chain_differences(wanted.name, chain, there)
    for there in own.chains:
        if wanted.chain(there.name) is None:
            if there.name in OWN_CHAINS:
                yield Difference("unexpected", wanted.name, there.name)
            else:
                for number, rule in enumerate(there.rules, 1):
                    yield Difference("unexpected", wanted.name, there.name, number, rule)


def _chain_differences(table: str, wanted: Chain, found: Chain) -> Iterator[Difference]:
    missing = list(unpaired(wanted.rules, found.rules))
    unexpected = list(unpaired(found.rules, wanted.rules))
    yield from (Difference("missing", table, wanted.name, number, rule) for number, rule in missing)
    yield from (Difference("unexpected", table, wanted.name, number, rule) for number, rule in unexpected)
    if not missing and not unexpected and not equivalent(wanted.rules, found.rules):
        pairs = enumerate(zip(wanted.rules, found.rules, strict=True), 1)
        number, rule = next((number, want) for number, (want, have) in pairs if want != have)
        yield Difference("misplaced", table, wanted.name, number, rule)


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
    left: dict[AnyRule, int] = {}
    for rule in others:
        left[rule] = left.get(rule, 0) + 1
    for number, rule in enumerate(rules, 1):
        if left.get(rule):
            left[rule] -= 1
        else:
            yield number, rule


class TableChange(Record):
    """One table to bring to `wanted`, or, if that is None, to remove all of Istio's rules from.

    `known` has further rules that count as Istio's without a signature (own_rules).
    """

    family: Family
    name: TableName
    wanted: Table | None
    known: Table | None = None
