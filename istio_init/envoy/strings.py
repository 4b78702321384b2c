"""Envoy's string matchers (envoy.type.matcher.v3.StringMatcher)."""

from __future__ import annotations

import re

from istio_init.envoy.node import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.node import Node

# Syntax that differs between re and RE2: named classes, most escapes, lookaround and flags, possessive and huge
# repetitions, repetitions without an operand, possible set operators.
DIFFERENT = re.compile(r"\[:|\\[^dDwWbB.\\/?*+()|{}^$\-\[\]]|\(\?(?!:)|[*+?}]\+|\{,|\{\d{4,}|\[\[|--|&&|~~|\|\|")
# re may take exponential time, unlike RE2: repeated groups, many repetitions and long texts are not evaluated.
REPEATED_GROUP = re.compile(r"\)[*+{]")
REPETITION = re.compile(r"(?<!\\)[*+{]")
MOST_REPETITIONS = 3
LONGEST = 400


class Unclear(Exception):
    """A match that can't be decided; the message says why."""


def string_matches(fields: dict[str, Node], value: str, *, ignore_case: bool) -> bool:
    """Whether a string matches the pattern of a matcher; Unclear if that can't be decided."""
    for kind, node in fields.items():
        if kind == "safe_regex":
            # ignore_case has no effect on it.
            return regex_matches(node.get("regex").text(), value)
        if kind in {"exact", "prefix", "suffix", "contains"}:
            pattern = node.text()
            one, other = (_lower(value), _lower(pattern)) if ignore_case else (value, pattern)
            if kind == "exact":
                return one == other
            if kind == "contains":
                return other in one
            return one.startswith(other) if kind == "prefix" else one.endswith(other)
        if kind != "ignore_case":
            raise Unclear(f"{plain(node.path)} is not followed")
    raise Unclear("a string matcher without a pattern")


def _lower(text: str) -> str:
    """ASCII letters in lower case: absl::AsciiStrToLower."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def regex_matches(expression: str, value: str) -> bool:
    """Whether RE2 matches the whole string; Unclear unless Python's re is certain to agree."""
    if not _is_followed(expression) or len(value) > LONGEST or not value.isascii():
        raise Unclear(f"the regular expression {plain(expression)} is not followed")
    try:
        return re.compile(expression, re.ASCII).fullmatch(value) is not None
    except (re.error, RecursionError, OverflowError):
        raise Unclear(f"the regular expression {plain(expression)} is not followed") from None


def _is_followed(expression: str) -> bool:
    if len(expression) > LONGEST or DIFFERENT.search(expression) or REPEATED_GROUP.search(expression):
        return False
    return len(REPETITION.findall(expression)) <= MOST_REPETITIONS
