"""The diff engine of `check`, `plan` and the errors of a run: two sequences of values aligned; rules, not their text.

Not on the hot path: a run imports it only to describe drift that it does not repair.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    Value = TypeVar("Value", bound=Hashable)

# An item of both sequences, of the second one only, or of the first one only.
Sign: TypeAlias = Literal[" ", "+", "-"]


def aligned(before: Sequence[Value], after: Sequence[Value]) -> Iterator[tuple[Sign, int]]:
    """Both sequences as one: each item's sign and position (from 0), in `after` for `+` and in `before` otherwise."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, first, last, new_first, new_last in matcher.get_opcodes():
        if tag == "equal":
            yield from ((" ", at) for at in range(first, last))
        else:
            yield from (("-", at) for at in range(first, last))
            yield from (("+", at) for at in range(new_first, new_last))
