"""Inet tables as rulesets of both families: layout.py undone."""

from __future__ import annotations

from istio_init.formats.nft.layout import RETURN
from istio_init.formats.nft.merge import fold
from istio_init.formats.nft.unfold import unfold
from istio_init.model.inet import BASE_CHAINS, Addresses
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, IPV6, Chain, Jump, Ruleset, Run, Table, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.formats.nft.layout import Fold
    from istio_init.model.inet import InetChain, InetRule, InetTable
    from istio_init.model.rules import Family, Rule, TableName


def only_family(table: InetTable) -> Family | None:
    """The only family of a stored table, by the guards of its base chains; None if it is for both families."""
    guards = {
        chain.rules[0].family
        if chain.rules and (chain.rules[0].matches, chain.rules[0].target) == ((), RETURN)
        else None
        for chain in table.chains
        if chain.name in BASE_CHAINS[table.name]
    }
    guard = next(iter(guards)) if len(guards) == 1 else None
    return None if guard is None else IPV4 if guard == IPV6 else IPV6


def ruleset(
    tables: Iterable[InetTable], family: Family, expecting: Ruleset | None = None, fold: Fold = fold
) -> Ruleset:
    """What tables (as `meant`) hold for one family.

    A set keeps neither the order nor the overlaps of the rules it was made from: if it is what rules of `expecting`
    would become, it is read as those rules.
    """
    result = []
    for table in tables:
        planned_table = expecting.table(table.name) if expecting else None
        chains = {
            chain.name: _chain(
                chain, table.name, family, planned_table.chain(chain.name) if planned_table else None, fold
            )
            for chain in table.chains
            if _is_of(chain, table, family)
        }
        if chains:
            result.append(Table(table.name, ordered(table.name, chains)))
    result.sort(key=lambda table: list(BUILTIN_CHAINS).index(table.name))
    return Ruleset(family, tuple(result))


def _is_of(chain: InetChain, table: InetTable, family: Family) -> bool:
    """Whether a chain exists for a family: it has a rule, or a jump to it has; one that has neither exists for both."""
    jumps = [
        rule
        for each in table.chains
        for rule in each.rules
        if rule.target in (Jump(chain.name), Jump(chain.name, True))
    ]
    involved = {rule.family for rule in (*chain.rules, *jumps)}
    return not involved or None in involved or family in involved


def _chain(chain: InetChain, table: TableName, family: Family, planned: Chain | None, fold: Fold) -> Chain:
    rules = tuple(rule.replace(family=family) for rule in chain.rules if rule.family in (None, family))
    policy = "ACCEPT" if chain.name in BUILTIN_CHAINS[table] else None
    if planned is not None:
        folded = fold(planned.parts, family)
        if folded.rules == rules:
            parts = tuple(map(_as_ours, planned.parts))
            return (
                planned if (parts, policy) == (planned.parts, planned.policy) else Chain.of(chain.name, parts, policy)
            )
        sources = {rule: tuple(folded.sources(number)) for number, rule in enumerate(folded.rules)}
        if any(map(_has_networks, folded.rules)):
            from istio_init.formats.nft.prefix_lengths import as_one_rule

            sources.update(as_one_rule(folded))
    else:
        sources = {}
    return Chain(
        chain.name, tuple(each for rule in rules for each in sources.get(rule) or unfold(rule, family)), policy
    )


def _has_networks(rule: InetRule) -> bool:
    return any(isinstance(match, Addresses) and match.networks for match in rule.matches)


def _as_ours(part: Rule | Run) -> Rule | Run:
    if isinstance(part, Run):
        if all(rule.ours for rule in part.unit):
            return part
        return part.replace(unit=tuple(rule.replace(ours=True) for rule in part.unit))
    return part if part.ours else part.replace(ours=True)
