"""Rules in built-in chains that count as Istio's by what they are: unsigned, and not equal to planned ones."""

from __future__ import annotations

from istio_init.model.rules import Table
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.model.rules import Chain, Rule


class RuleClaim(Record):
    """One rule: of the `total` equal ones in a chain the one at `place`, from 0; others may be another program's."""

    chain: str
    rule: Rule
    place: int
    total: int


class KnownTable(Table):
    """A table of which further rules are known to be Istio's."""

    claims: tuple[RuleClaim, ...] = ()


def claim(chain: Chain, number: int) -> RuleClaim:
    """The claim to the rule at a position, from 0."""
    rule = chain.rules[number]
    equal = [at for at, each in enumerate(chain.rules) if each == rule]
    return RuleClaim(chain.name, rule, equal.index(number), len(equal))


def marked(table: Table, claims: Iterable[RuleClaim]) -> Table:
    """The table with the claimed rules marked as Istio's. Where the number of equal ones has changed, none is."""
    by_chain: dict[str, list[RuleClaim]] = {}
    for each in claims:
        by_chain.setdefault(each.chain, []).append(each)
    return table.replace(chains=tuple(_marked(chain, by_chain.get(chain.name, [])) for chain in table.chains))


def _marked(chain: Chain, claims: list[RuleClaim]) -> Chain:
    rules = list(chain.rules) if claims else []
    for each in claims:
        equal = [at for at, rule in enumerate(rules) if rule == each.rule]
        if len(equal) == each.total:
            rules[equal[each.place]] = each.rule.replace(ours=True)
    return chain.replace(rules=tuple(rules)) if claims else chain
