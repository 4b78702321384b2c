"""Netfilter's nouns that no plan of ours has: comments, and matches and targets that we don't know."""

from __future__ import annotations

from istio_init.record import Record


class Comment(Record):
    """-m comment: matches always; says why the rule is there."""

    text: str


class UnknownMatch(Record):
    """A match that we don't model: the extension's name, its revision, and its data as the kernel keeps it."""

    name: str
    revision: int
    data: bytes


class UnknownTarget(Record):
    """A target that we don't model: the extension's name, its revision, and its data as the kernel keeps it."""

    name: str
    revision: int
    data: bytes
