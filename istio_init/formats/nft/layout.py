"""Lays rulesets of both families out as inet tables. as_rulesets.py reads them back."""

from __future__ import annotations

from istio_init.formats.nft.merge import fold
from istio_init.model.inet import BASE_CHAINS, Addresses, InetChain, InetRule, InetTable
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, IPV6, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from istio_init.formats.nft.merge import Folded
    from istio_init.model.rules import Family, Rule, Ruleset, Run, TableName

    # merge.fold, or one that remembers.
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
        from istio_init.errors import InitError, shown

        raise InitError(f"--native-nftables: {name} {shown(strange[0])}: no base chain there; leave the flag out")
    users = sorted(chain for chain in folded if chain not in base)
    return InetTable(name, tuple(InetChain(chain, _together(folded[chain])) for chain in (*base, *users)))


def _together(folded: dict[Family, tuple[InetRule, ...]]) -> tuple[InetRule, ...]:
    """Both families' rules, each in their order, those that are the same made one."""
    if len(folded) == 1:
        return next(iter(folded.values()))
    rules: list[InetRule] = []
    second = folded.get(IPV6, ())
    at = 0
    for rule in folded.get(IPV4, ()):
        twin = InetRule(rule.matches, rule.target, IPV6, rule.comment)
        if _names_family(rule) or twin not in second[at:]:
            rules.append(rule)
            continue
        position = second.index(twin, at)
        rules += second[at:position]
        rules.append(InetRule(rule.matches, rule.target, None, rule.comment))
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
            if alone and not _names_family(rule):
                rules.append(InetRule(rule.matches, rule.target, None, rule.comment))
            else:
                rules.append(rule)
            if _is_tproxy(rule):
                rules.append(drop_behind(rule))
        chains.append(InetChain(chain.name, tuple(rules)))
    return InetTable(table.name, tuple(chains))


def drop_behind(rule: InetRule) -> InetRule:
    """The rule behind one with a tproxy: it drops what no listener takes."""
    return rule.replace(target=DROP, comment=UNHEARD if rule.comment else "")
