"""Istio rules of a family that a plan has no rules for: a run leaves them as they are, and says so."""

from __future__ import annotations

from istio_init.model.ownership import own_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Ruleset
    from istio_init.planning.plan import Plan


def unplanned(plan: Plan, rulesets: tuple[Ruleset, ...]) -> Iterator[str]:
    """A warning for each family of `rulesets` that has Istio rules, and none in the plan.

    Whether a namespace uses IPv6 may change while a pod starts, so they are not removed without being asked for.
    """
    for ruleset in rulesets:
        tables = [table.name for table in ruleset.tables if own_part(table)]
        if tables and plan.ruleset(ruleset.family) is None:
            yield (
                f"{ruleset.family} has Istio rules of an earlier run ({', '.join(tables)}), and these options make "
                "none: that traffic is captured as before; --enable-ipv6 updates them, --cleanup-only removes them"
            )
