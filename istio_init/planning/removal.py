"""Computes the changes that remove all Istio rules; changes.py computes those that apply a plan."""

from __future__ import annotations

from istio_init.model.compare import TableChange, own_part
from istio_init.model.routing import Address
from istio_init.model.rules import IPV6, LOOPBACK_INTERFACE
from istio_init.planning.capture import PASSTHROUGH
from istio_init.planning.changes import Changes, leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.claims import RuleClaim
    from istio_init.model.rules import Family, Ruleset, Table, TableName
    from istio_init.planning.changes import NamespaceState
    from istio_init.planning.plan import Plan


def removal(found: NamespaceState, plan: Plan, others: tuple[Ruleset, ...] = (), *, releases: bool = False) -> Changes:
    """The changes that remove all Istio rules and routing, whatever options made them; nat comes first.

    The plan identifies Istio rules without a signature, and routing whose rules are already gone.
    The rules in other backends' tables, `others`, identify routing, too. With `releases`, bare rules that Istio's
    releases made go as well, as far as they can be told from other programs' (earlier_releases.py).
    """
    claimed = _claims(found) if releases else {}
    tables = []
    for ruleset in found.rulesets:
        wanted = plan.ruleset(ruleset.family)
        for table in ruleset.tables:
            known = wanted.table(table.name) if wanted else None
            if mine := claimed.get((ruleset.family, table.name)):
                known = _known(table.name, known, mine)
            if own_part(table, known):
                tables.append(TableChange(ruleset.family, table.name, None, known))
    tables.sort(key=lambda change: change.name != "nat")
    drop = [entry for entry in plan.routing if entry in found.routing]
    drop += [entry for entry in leftovers(found, plan, others) if entry not in drop]
    # Istio's, whether or not these options enable IPv6.
    passthrough = Address(PASSTHROUGH[IPV6], LOOPBACK_INTERFACE)
    if passthrough in found.routing and passthrough not in drop:
        drop.append(passthrough)
    return Changes((), tuple(tables), tuple(drop), "cleaning up")


def _claims(found: NamespaceState) -> dict[tuple[Family, TableName], tuple[RuleClaim, ...]]:
    from istio_init.planning.earlier_releases import claims

    return claims(found.rulesets)


def _known(name: TableName, planned: Table | None, claims: tuple[RuleClaim, ...]) -> Table:
    from istio_init.planning.earlier_releases import known_table

    return known_table(name, planned, claims)
