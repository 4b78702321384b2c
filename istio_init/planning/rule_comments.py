"""The reasons of planning/capture.py as comments of the rules, which the kernel keeps and the listing tools print.

A comment holds up to 255 bytes in iptables and 127 in nftables.
"""

from __future__ import annotations

from istio_init.model.rules import Run
from istio_init.model.unknown import Comment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from istio_init.model.rules import Rule
    from istio_init.options.table import Options
    from istio_init.planning.capture import PlannedRule, Why


def with_comments(rules: Iterator[PlannedRule], options: Options) -> Iterator[PlannedRule]:
    """The same rules, each with its reason in a comment behind its other matches."""
    for planned in rules:
        part, why = planned.part, planned.why
        if isinstance(part, Run):
            each: Any = why if isinstance(why[0], tuple) else (why,) * len(part.unit)
            unit = tuple(_commented(rule, reason, options) for rule, reason in zip(part.unit, each, strict=True))
            yield planned.replace(part=part.replace(unit=unit))
        else:
            yield planned.replace(part=_commented(part, why, options))


def _commented(rule: Rule, why: Why | tuple[Why, ...], options: Options) -> Rule:
    return rule.replace(matches=(*rule.matches, Comment(reason_text(why, options))))


def reason_text(why: Why | tuple[Why, ...], options: Options) -> str:
    """A single reason in words, with the values of options that it names."""
    text: Any = why[0]
    return str(text.format(options=options))
