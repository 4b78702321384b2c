"""What only other programs' rules have: comments, and matches and targets that this program does not know."""

from __future__ import annotations

from istio_init.record import Record


class Comment(Record):
    """-m comment: always matches; a note for people."""

    text: str


class UnknownMatch(Record):
    """A match that this program does not know: the extension's name, revision, and data as the kernel keeps it."""

    name: str
    revision: int
    data: bytes


class UnknownTarget(Record):
    """A target that this program does not know: the extension's name, revision, and data as the kernel keeps it."""

    name: str
    revision: int
    data: bytes
