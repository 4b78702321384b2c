"""What each rule of a plan is for, in words: the reasons that planning/capture.py states beside the rules.

The numbers of rules and steps are those of "Sidecar injection, transparent traffic hijacking and routing in Istio"
(Jimmy Song, for Istio 1.13), by which people refer to the rules of ISTIO_OUTPUT.
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
        return tuple(found.title for flag in self.flags if (found := of_flag(flag)))


def purposes(options: Options, family: Family) -> dict[RuleLocation, Purpose]:
    """The purpose of every rule of the plan by location; where two concerns make an equal rule, the first one's."""
    known: dict[RuleLocation, Purpose] = {}
    for concern in capture.CONCERNS:
        rules = capture.rules_of(concern, options, family)
        for planned in (each for some in rules for each in some.expanded()):
            location = (planned.table, planned.chain, planned.rule)
            if planned.why and location not in known:
                known[location] = _purpose(concern.__name__, *planned.why, options=options)
    return known


def _purpose(  # noqa: PLR0913 (a reason's parts, spread)
    concern: str, text: str, flags: str, number: str = "", steps: str = "", *, options: Options
) -> Purpose:
    return Purpose(concern, text.format(options=options), number, steps, tuple(flags.split()))


def purpose(known: Mapping[RuleLocation, Purpose], table: str, chain: str, rule: Rule) -> Purpose | None:
    """The purpose of a rule, which may be a live one; None where the plan has no such rule in that chain."""
    return known.get((table, chain, rule))
