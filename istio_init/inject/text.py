"""Changes of a text at places, and the lines around a place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

# What YAML ends a line with (YAML 1.1, 5.4): a carriage return alone counts.
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class TextEdit(Record):
    """The text from `start` to `end` becomes `new`."""

    start: int
    end: int
    new: str


def applied(text: str, edits: Iterable[TextEdit]) -> str:
    """The text with all edits made. Equal ones count once: an alias leads to the same place from several workloads.

    ValueError where two overlap: what they were to do to a shared part differs.
    """
    parts: list[str] = []
    at = 0
    for edit in sorted(set(edits), key=lambda each: (each.start, each.end)):
        if edit.start < at or (parts and edit.start == at and edit.start == edit.end):
            raise ValueError("two workloads share a part of the text (an anchor), and need it to be different")
        parts += [text[at : edit.start], edit.new]
        at = edit.end
    return "".join([*parts, text[at:]])


def line_start(text: str, at: int) -> int:
    """Where the line of a place begins."""
    starts = [match.end() for match in _BREAK.finditer(text, max(0, text.rfind("\n", 0, at)), at)]
    return starts[-1] if starts else (text.rfind("\n", 0, at) + 1)


def line_end(text: str, at: int) -> int:
    """Where the line of a place ends, its break included: the next line's beginning, or the end of the text."""
    match = _BREAK.search(text, at)
    return match.end() if match else len(text)


def newline(text: str, at: int) -> str:
    """The line break of the line of a place, or else that of the text's first line."""
    match = _BREAK.search(text, at) or _BREAK.search(text)
    return match[0] if match else "\n"


def is_blank(text: str) -> bool:
    """Whether there is nothing but spaces in it."""
    return not text.strip(" \t")


def ends_line(text: str) -> bool:
    """Whether the text ends with a line break, or is empty."""
    return not text or _BREAK.match(text[-1]) is not None


def indentation(text: str, at: int) -> str:
    """What comes before a place in its line, with everything but tabs as spaces."""
    return re.sub(r"[^\t]", " ", text[line_start(text, at) : at])
