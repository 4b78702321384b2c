"""Lays rulesets of both families out as inet tables, and reads inet tables back as rulesets."""

from __future__ import annotations

from istio_init.errors import InitError, shown
from istio_init.formats.nft.merge import fold, unfold
from istio_init.model.inet import BASE_CHAINS, Addresses, InetChain, InetRule, InetTable
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, IPV6, Chain, Jump, Ruleset, Run, Table, Verdict, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from istio_init.formats.nft.merge import Folded
    from istio_init.model.rules import Family, Rule, TableName

    # nft_fold.fold, or one that remembers.
    Fold: TypeAlias = Callable[[Sequence[Rule | Run], Family], Folded]

DROP, RETURN = Verdict("DROP"), Verdict("RETURN")

# What the rules are for that no rule of iptables becomes.
ONE_FAMILY = "the table is for the other family only"
UNHEARD = "without a transparent listener the packet is dropped, as iptables' TPROXY does"


def layout(rulesets: Iterable[Ruleset], name: TableName, fold: Fold = fold) -> InetTable:
    """The inet table that holds what the rulesets (one for each family, at most) have in their table `name`."""
    folded: dict[str, dict[Family, tuple[InetRule, ...]]] = {}
    for ruleset in rulesets:
        table = ruleset.table(name)
        for chain in table.chains if table else ():
            if chain.parts or chain.policy is None:
                folded.setdefault(chain.name, {})[ruleset.family] = fold(chain.parts, ruleset.family).rules
    base = [hook for hook in BUILTIN_CHAINS[name] if hook in folded]
    if strange := [hook for hook in base if hook not in BASE_CHAINS.get(name, {})]:
        raise InitError(f"--native-nftables: {name} {shown(strange[0])}: no base chain there; leave the flag out")
    users = sorted(chain for chain in folded if chain not in base)
    return InetTable(name, tuple(InetChain(chain, _together(folded[chain])) for chain in (*base, *users)))


def _together(folded: dict[Family, tuple[InetRule, ...]]) -> tuple[InetRule, ...]:
    """Both families' rules, each in their order, those that are the same made one."""
    rules: list[InetRule] = []
    second = folded.get(IPV6, ())
    at = 0
    for rule in folded.get(IPV4, ()):
        twin = rule.replace(family=IPV6)
        if _names_family(rule) or twin not in second[at:]:
            rules.append(rule)
            continue
        position = second.index(twin, at)
        rules += second[at:position]
        rules.append(rule.replace(family=None))
        at = position + 1
    return (*rules, *second[at:])


def _names_family(rule: InetRule) -> bool:
    """Whether a rule says by itself which family it is about."""
    return _is_tproxy(rule) or any(isinstance(match, Addresses) for match in rule.matches)


def _is_tproxy(rule: InetRule) -> bool:
    """Whether a rule's target is a Tproxy, which a plan without one does not load."""
    return type(rule.target).__name__ == "Tproxy"


def stored(table: InetTable) -> InetTable:
    """The table as it is in the kernel: each tproxy followed by its drop, and one family's table guarded."""
    families = {rule.family for chain in table.chains for rule in chain.rules}
    hooked = any(chain.name in BASE_CHAINS[table.name] for chain in table.chains)
    alone = next(iter(families)) if hooked and len(families) == 1 else None
    chains = []
    for chain in table.chains:
        rules: list[InetRule] = []
        if alone and chain.name in BASE_CHAINS[table.name]:
            comment = ONE_FAMILY if any(rule.comment for rule in chain.rules) else ""
            rules.append(InetRule((), RETURN, IPV6 if alone == IPV4 else IPV4, comment))
        for rule in chain.rules:
            rules.append(rule if not alone or _names_family(rule) else rule.replace(family=None))
            if _is_tproxy(rule):
                rules.append(drop_behind(rule))
        chains.append(chain.replace(rules=tuple(rules)))
    return table.replace(chains=tuple(chains))


def drop_behind(rule: InetRule) -> InetRule:
    """The rule behind one with a tproxy: it drops what no listener takes."""
    return rule.replace(target=DROP, comment=UNHEARD if rule.comment else "")


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
