"""What has to go for nothing of ours to be left, as a value; changes.py has the same for a plan."""

from __future__ import annotations

from istio_init.model.compare import TableChange, own_part
from istio_init.model.routing import Address
from istio_init.model.rules import IPV6, LOOPBACK_INTERFACE
from istio_init.planning.capture import PASSTHROUGH
from istio_init.planning.changes import Changes, leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.planning.changes import NamespaceState
    from istio_init.planning.plan import Plan


def removal(found: NamespaceState, plan: Plan) -> Changes:
    """How to take everything of ours away, whichever options it was made with; nat lets go first.

    The plan of today's options helps to know rules that bear no signature, and routing whose rules are gone.
    """
    tables = []
    for ruleset in found.rulesets:
        wanted = plan.ruleset(ruleset.family)
        for table in ruleset.tables:
            known = wanted.table(table.name) if wanted else None
            if own_part(table, known):
                tables.append(TableChange(ruleset.family, table.name, None, known))
    tables.sort(key=lambda change: change.name != "nat")
    drop = [entry for entry in plan.routing if entry in found.routing]
    drop += [entry for entry in leftovers(found, plan) if entry not in drop]
    # Ours whatever today's options say of IPv6.
    passthrough = Address(PASSTHROUGH[IPV6], LOOPBACK_INTERFACE)
    if passthrough in found.routing and passthrough not in drop:
        drop.append(passthrough)
    return Changes((), tuple(tables), tuple(drop), "cleaning up")
