"""Computes the changes that remove all Istio rules; changes.py computes those that apply a plan."""

from __future__ import annotations

from istio_init.model.compare import TableChange
from istio_init.model.ownership import own_part
from istio_init.model.routing import Address
from istio_init.model.rules import BUILTIN_CHAINS, IPV6, LOOPBACK_INTERFACE
from istio_init.planning.capture import PASSTHROUGH
from istio_init.planning.changes import Changes, leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.claims import RuleClaim
    from istio_init.model.rules import Family, Ruleset, Table, TableName
    from istio_init.planning.changes import NamespaceState
    from istio_init.planning.plan import Plan


def removal(
    current: NamespaceState, plan: Plan, others: tuple[Ruleset, ...] = (), *, releases: bool = False
) -> Changes:
    """The changes that remove all Istio rules and routing, whatever options made them; nat comes first.

    The plan identifies Istio rules without a signature, and routing whose rules are already gone.
    The rules in other backends' tables, `others`, identify routing, too. With `releases`, bare rules that Istio's
    releases made go as well, as far as they can be told from other programs' (earlier_releases.py).
    """
    claimed = _claims(current) if releases and has_unsigned_rules(current.rulesets) else {}
    tables = []
    for ruleset in current.rulesets:
        desired = plan.ruleset(ruleset.family)
        for table in ruleset.tables:
            planned = desired.table(table.name) if desired else None
            if releases_claims := claimed.get((ruleset.family, table.name)):
                planned = _recognisable(table.name, planned, releases_claims)
            if own_part(table, planned):
                tables.append(TableChange(ruleset.family, table.name, None, planned))
    tables.sort(key=lambda change: change.name != "nat")
    drop = [entry for entry in plan.routing if entry in current.routing]
    drop += [entry for entry in leftovers(current, plan, others) if entry not in drop]
    # Istio's, whether or not these options enable IPv6.
    passthrough = Address(PASSTHROUGH[IPV6], LOOPBACK_INTERFACE)
    if passthrough in current.routing and passthrough not in drop:
        drop.append(passthrough)
    return Changes((), tuple(tables), tuple(drop), "cleaning up")


def has_unsigned_rules(rulesets: tuple[Ruleset, ...]) -> bool:
    """Whether a built-in chain has a rule without this program's signature, as each bare rule of Istio's releases is.

    Where there is none, as in most pods, a cleanup need not import what recognises them: a third of its time.
    """
    return any(
        not rule.ours
        for ruleset in rulesets
        for table in ruleset.tables
        for chain in table.chains
        if chain.name in BUILTIN_CHAINS["mangle"]  # mangle has all of them
        for rule in chain.rules
    )


def _claims(current: NamespaceState) -> dict[tuple[Family, TableName], tuple[RuleClaim, ...]]:
    from istio_init.planning.earlier_releases import claims

    return claims(current.rulesets)


def _recognisable(name: TableName, planned: Table | None, claims: tuple[RuleClaim, ...]) -> Table:
    from istio_init.planning.earlier_releases import recognisable_table

    return recognisable_table(name, planned, claims)
