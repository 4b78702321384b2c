"""What stands and is not as it should be, in words. A run that finds everything in order has no use for them."""

from __future__ import annotations

from istio_init.formats.iptables_save import rule_text
from istio_init.model.routing import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.compare import Difference
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family

# How many differences an error names.
MOST_SHOWN = 50


def drift_message(
    drift: tuple[tuple[Family, Difference], ...], missing: tuple[RoutingEntry, ...], stale: tuple[RoutingEntry, ...]
) -> str:
    """Every difference, one after the other, and what to do."""
    found = deviations(drift, missing, stale)
    if len(found) > MOST_SHOWN:
        found[MOST_SHOWN:] = [f"and {len(found) - MOST_SHOWN} more"]
    return f"other rules of ours stand here (--reconcile mends this, --cleanup-only removes them): {'; '.join(found)}"


def deviations(
    drift: tuple[tuple[Family, Difference], ...], missing: tuple[RoutingEntry, ...], stale: tuple[RoutingEntry, ...]
) -> list[str]:
    """Every difference in words."""
    found = [difference_text(family, difference) for family, difference in drift]
    found += [f"missing: {command(entry)}" for entry in missing]
    found += [f"unexpected: {command(entry)}" for entry in stale]
    return found


def difference_text(family: Family, difference: Difference) -> str:
    """One difference in words, its rule as iptables-save prints it."""
    where = f"{family} {difference.table}"
    if not difference.chain:
        return f"{where} table: {difference.kind}"
    if difference.rule is None:
        return f"{where} chain {difference.chain}: {difference.kind}"
    text = rule_text(difference.rule)
    return f"{where} {difference.chain} rule {difference.number} {difference.kind}: {text}"
