"""What differs between Istio's rules as they are wanted and as they are, rule by rule.

A run that finds everything in order, or nothing, does not import this module.
"""

from __future__ import annotations

from istio_init.model.compare import own_table, pairs
from istio_init.model.ownership import chain_of, own_rules
from istio_init.model.rules import OWN_CHAINS, Chain, Rule
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    from istio_init.model.inet import InetRule
    from istio_init.model.rules import Ruleset, Table, Target

    AnyRule = TypeVar("AnyRule")
    EitherRule = TypeVar("EitherRule", Rule, InetRule)


class Difference(Record):
    """One difference: a rule is `missing`, `unexpected` or `misplaced`; its number counts from 1.

    `rule` is None for a whole chain or, if the chain name is empty, a whole table.
    """

    kind: str
    table: str
    chain: str
    number: int = 0
    rule: Rule | None = None


def differences(desired: Ruleset, current: Ruleset) -> Iterator[Difference]:
    """What differs in Istio's rules, rule by rule; nothing where the plan is in place."""
    for desired_table, current_table in pairs(desired, current):
        own = own_table(desired_table, current_table)
        if own is None:
            yield Difference("missing", desired_table.name, "")
            continue
        for chain, current_chain in drifted_chains(desired_table, own, current_table):
            if current_chain is None:
                yield Difference("missing", desired_table.name, chain.name)
            elif desired_table.chain(chain.name) is None and chain.name in OWN_CHAINS:
                yield Difference("unexpected", desired_table.name, chain.name)
            else:
                yield from _chain_differences(desired_table.name, chain, current_chain)


def drifted_chains(desired: Table, own: Table, current: Table | None) -> Iterator[tuple[Chain, Chain | None]]:
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
