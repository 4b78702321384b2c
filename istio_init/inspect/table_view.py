"""Tables as rows for people: each rule's columns and counters, its state, and its purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from istio_init.formats.iptables_list import columns, inet_columns
from istio_init.formats.iptables_save import rule_text
from istio_init.formats.nft.as_rulesets import only_family
from istio_init.formats.nft.layout import DROP, ONE_FAMILY, RETURN, UNHEARD, layout, stored
from istio_init.formats.nft.listing import rule_text as inet_text
from istio_init.formats.nft.merge import fold
from istio_init.model.differences import equivalent, unpaired
from istio_init.model.extensions import Tproxy
from istio_init.model.inet import BASE_CHAINS, NAMES, InetRule, InetTable, chain_name, sets
from istio_init.model.ownership import own_rules, recognised
from istio_init.model.rules import FAMILIES, Rule
from istio_init.record import Record
from istio_init.simulate.purposes import Purpose, purpose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_init.formats.iptables_list import Columns
    from istio_init.model.counters import Count, CountedInet, CountedTable
    from istio_init.model.inet import InetChain, Sets
    from istio_init.model.rules import Chain, Family, Ruleset, Table
    from istio_init.simulate.purposes import RuleLocation

AnyRule = TypeVar("AnyRule", Rule, InetRule)

# An Istio rule that is in the plan, is not, is at another position of the chain, or is of a family that the plan does
# not cover; and another program's rule.
RuleState: TypeAlias = Literal["in place", "unexpected", "misplaced", "other family", "foreign"]

GUARD = Purpose("", ONE_FAMILY)
DROPPED = Purpose("", UNHEARD)


class RuleRow(Record):
    """One rule: its number in its chain, from 1, and how its backend's own tool prints it."""

    number: int
    count: Count | None
    columns: Columns
    text: str
    state: RuleState
    purposes: tuple[Purpose, ...] = ()


class ChainRows(Record):
    """A chain with its rules; a built-in one has a policy. `missing` are the plan's rules that it lacks, as text."""

    name: str
    rows: tuple[RuleRow, ...]
    policy: str | None = None
    count: Count | None = None
    missing: tuple[str, ...] = ()


class TableRows(Record):
    """A table; `family` is `inet` for native ones."""

    family: str
    name: str
    chains: tuple[ChainRows, ...]


def table_rows(
    counted: CountedTable,
    planned: Table | None,
    reasons: Mapping[RuleLocation, Purpose],
    stray: RuleState = "unexpected",
) -> TableRows:
    """The rows of an iptables table, compared with the plan's table; other Istio rules are `stray`."""
    existing = recognised(counted.table, planned)
    plans = {chain.name: chain for chain in planned.chains} if planned else {}
    chains = tuple(_chain_rows(counted, chain, plans.get(chain.name), reasons, stray) for chain in existing.chains)
    absent = (chain for name, chain in plans.items() if existing.chain(name) is None)
    lacking = tuple(ChainRows(chain.name, (), missing=tuple(map(rule_text, chain.rules))) for chain in absent)
    return TableRows(counted.family, existing.name, (*chains, *lacking))


def _chain_rows(
    counted: CountedTable,
    chain: Chain,
    planned: Chain | None,
    reasons: Mapping[RuleLocation, Purpose],
    stray: RuleState,
) -> ChainRows:
    own = own_rules(chain)
    rules = planned.rules if planned else ()
    states = dict(zip(own, _states(tuple(chain.rules[at] for at in own), rules, stray), strict=True))
    counts = counted.counts.get(chain.name, ())
    rows = []
    for at, rule in enumerate(chain.rules):
        why = purpose(reasons, counted.table.name, chain.name, rule) if at in states else None
        count = counts[at] if at < len(counts) else None
        state, purposes = states.get(at, "foreign"), (why,) if why else ()
        rows.append(RuleRow(at + 1, count, columns(rule), rule_text(rule), state, purposes))
    lacking = unpaired(rules, tuple(chain.rules[at] for at in own))
    missing = tuple(rule_text(rule) for _, rule in lacking)
    return ChainRows(chain.name, tuple(rows), chain.policy, counted.policies.get(chain.name), missing)


def _states(
    existing: tuple[AnyRule, ...], planned: tuple[AnyRule, ...], stray: RuleState = "unexpected"
) -> list[RuleState]:
    """How each Istio rule of a chain compares with the plan's."""
    strays = {number for number, _ in unpaired(existing, planned)}
    lacks = any(True for _ in unpaired(planned, existing))
    same = not (strays or lacks) and equivalent(existing, planned)
    states: list[RuleState] = []
    for number, rule in enumerate(existing, 1):
        if number in strays:
            states.append(stray)
        elif strays or lacks or same or rule == planned[number - 1]:
            states.append("in place")
        else:
            states.append("misplaced")
    return states


def inet_rows(
    counted: CountedInet,
    planned: tuple[Ruleset, ...],
    reasons: Mapping[Family, Mapping[RuleLocation, Purpose]],
) -> TableRows:
    """The rows of a native table; `planned` is the plan, `reasons` its rules' purposes by family."""
    desired = stored(layout(planned, counted.name))
    existing_table = InetTable(counted.name, tuple(chain for chain, _ in counted.chains))
    family, existing = _comparison(existing_table, planned)
    plans = {chain.name: tuple(_of_family(chain, family).values()) for chain in desired.chains}
    why = _inet_purposes(counted, planned, reasons)
    named = sets(existing_table)
    chains: list[ChainRows] = []
    for chain, counts in counted.chains:
        rules, own = plans.get(chain.name, ()), existing[chain.name]
        states = dict(zip(own, _states(tuple(own.values()), rules), strict=True))
        rows = (
            RuleRow(
                at + 1, count, inet_columns(rule, named), _with_counter(rule, count, named),
                states.get(at, "other family"), why(chain.name, rule),
            )
            for at, (rule, count) in enumerate(zip(chain.rules, counts, strict=True))
        )  # fmt: skip
        missing = tuple(inet_text(rule, sets(desired)) for _, rule in unpaired(rules, tuple(own.values())))
        policy = "ACCEPT" if chain.name in BASE_CHAINS[counted.name] else None
        chains.append(ChainRows(chain_name(chain.name), tuple(rows), policy, missing=missing))
    for name, rules in plans.items():
        if name not in existing:
            missing = tuple(inet_text(rule, sets(desired)) for rule in rules)
            chains.append(ChainRows(chain_name(name), (), missing=missing))
    return TableRows("inet", NAMES[counted.name], tuple(chains))


def _comparison(table: InetTable, planned: tuple[Ruleset, ...]) -> tuple[Family | None, dict[str, dict[int, InetRule]]]:
    """The family in which to compare, and the existing rules of that family by chain and position.

    The family is None, and all rules are compared, if the table has no more families than the plan. A plan for one
    family leaves the other's rules alone; rules for both are then compared as they apply to that family.
    """
    guarded, families = only_family(table), {ruleset.family for ruleset in planned}
    family = next(iter(families)) if len(families) == 1 and families != {guarded} else None
    both = family is not None and guarded is not None
    return family, {chain.name: {} if both else _of_family(chain, family) for chain in table.chains}


def _of_family(chain: InetChain, family: Family | None) -> dict[int, InetRule]:
    """The rules that apply to a family, by position, each as a rule of that family; with None all, unchanged."""
    if family is None:
        return dict(enumerate(chain.rules))
    return {at: rule.replace(family=family) for at, rule in enumerate(chain.rules) if rule.family in {None, family}}


def _with_counter(rule: InetRule, count: Count | None, named: Sets) -> str:
    """A rule as `nft list` prints it, with its counter."""
    text = inet_text(rule, named)
    return text.replace("packets 0 bytes 0", f"packets {count.packets} bytes {count.bytes}") if count else text


def _inet_purposes(
    counted: CountedInet, planned: tuple[Ruleset, ...], reasons: Mapping[Family, Mapping[RuleLocation, Purpose]]
) -> Callable[[str, InetRule], tuple[Purpose, ...]]:
    """A function for the purposes of a chain's rule: those of all iptables rules that it combines."""
    why: dict[tuple[str, InetRule], tuple[Purpose, ...]] = {}
    for ruleset in planned:
        table = ruleset.table(counted.name)
        for chain in table.chains if table else ():
            folded = fold(chain.parts, ruleset.family)
            for number, rule in enumerate(folded.rules):
                sources = folded.sources(number)
                purposes = (purpose(reasons[ruleset.family], counted.name, chain.name, source) for source in sources)
                why[chain.name, rule] = tuple(dict.fromkeys(each for each in purposes if each))

    def purposes_of(chain: str, rule: InetRule) -> tuple[Purpose, ...]:
        if rule.target == RETURN and not rule.matches and chain in BASE_CHAINS[counted.name]:
            return (GUARD,)
        for family in FAMILIES if rule.family is None else (rule.family,):
            if purposes := why.get((chain, rule.replace(family=family))):
                return purposes
        drops = rule.target == DROP and any(
            each.matches == rule.matches and isinstance(each.target, Tproxy) for name, each in why if name == chain
        )
        return (DROPPED,) if drops else ()

    return purposes_of
