"""The purpose of each rule of a plan, in words: the reasons that planning/capture.py states with the rules.

The numbers of rules and steps are those of "Sidecar injection, transparent traffic hijacking and routing in Istio"
(Jimmy Song, for Istio 1.13), which people use to refer to the rules of ISTIO_OUTPUT.
"""

from __future__ import annotations

from istio_init.options.annotations import of_flag
from istio_init.planning import capture
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from istio_init.model.rules import Family, Rule
    from istio_init.options.table import Options

    # A rule's table, its chain, and the rule itself.
    RuleLocation: TypeAlias = tuple[str, str, Rule]


class Purpose(Record):
    """Why a rule exists.

    `number` is the article's number (1 to 9) of a rule of ISTIO_OUTPUT, else empty; `steps` are the article's steps.
    `flags` are the options that made the rule, none where it always exists; `annotations` set them on a pod.
    """

    concern: str
    text: str
    number: str = ""
    steps: str = ""
    flags: tuple[str, ...] = ()

    @property
    def annotations(self) -> tuple[str, ...]:
        """The pod annotations by which Istio's injection sets the flags."""
        return tuple(annotation.title for flag in self.flags if (annotation := of_flag(flag)))


def purposes(options: Options, family: Family) -> dict[RuleLocation, Purpose]:
    """The purpose of every rule of the plan by location; of equal rules from two concerns, the first one's."""
    by_location: dict[RuleLocation, Purpose] = {}
    for concern in capture.CONCERNS:
        rules = capture.rules_of(concern, options, family)
        for planned in (each for some in rules for each in some.expanded()):
            location = (planned.table, planned.chain, planned.rule)
            if planned.why and location not in by_location:
                by_location[location] = _purpose(concern.__name__, *planned.why, options=options)
    return by_location


def _purpose(  # noqa: PLR0913 (a reason's parts, spread)
    concern: str, text: str, flags: str, number: str = "", steps: str = "", *, options: Options
) -> Purpose:
    return Purpose(concern, text.format(options=options), number, steps, tuple(flags.split()))


def purpose(reasons: Mapping[RuleLocation, Purpose], table: str, chain: str, rule: Rule) -> Purpose | None:
    """The purpose of a rule of the plan or the kernel; None if the plan has no such rule in that chain."""
    return reasons.get((table, chain, rule))
