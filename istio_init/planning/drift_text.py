"""Differences from the plan in words. Imported only when drift is found."""

from __future__ import annotations

from istio_init.formats.iptables_save import rule_text
from istio_init.model.differences import differences
from istio_init.model.routing import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.differences import Difference
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, Ruleset
    from istio_init.planning.changes import NamespaceState
    from istio_init.planning.plan import Plan

# How many differences an error names.
MOST_SHOWN = 50


def drift_message(
    plan: Plan, current: NamespaceState, missing: tuple[RoutingEntry, ...], stale: tuple[RoutingEntry, ...]
) -> str:
    """The error of a run that refuses: every difference, and what to do."""
    texts = deviations(plan, current, missing, stale)
    if len(texts) > MOST_SHOWN:
        texts[MOST_SHOWN:] = [f"and {len(texts) - MOST_SHOWN} more"]
    return (
        "Istio rules that differ from the requested ones already exist "
        f"(use --reconcile to update them, --cleanup-only to remove them): {'; '.join(texts)}"
    )


def deviations(
    plan: Plan, current: NamespaceState, missing: tuple[RoutingEntry, ...], stale: tuple[RoutingEntry, ...]
) -> list[str]:
    """Every difference between the plan and what was found, in words."""
    texts = [
        difference_text(desired.family, difference)
        for desired in plan.rulesets
        for difference in differences(desired, current.ruleset(desired.family))
    ]
    texts += [f"missing: {command(entry)}" for entry in missing]
    texts += [f"unexpected: {command(entry)}" for entry in stale]
    return texts


def first_difference(desired: Ruleset, existing: Ruleset) -> str:
    """One difference in words, of those that there are."""
    return difference_text(desired.family, next(differences(desired, existing)))


def difference_text(family: Family, difference: Difference) -> str:
    """One difference in words, its rule as iptables-save prints it."""
    where = f"{family} {difference.table}"
    if not difference.chain:
        return f"{where} table: {difference.kind}"
    if difference.rule is None:
        return f"{where} chain {difference.chain}: {difference.kind}"
    text = rule_text(difference.rule)
    return f"{where} {difference.chain} rule {difference.number} {difference.kind}: {text}"
