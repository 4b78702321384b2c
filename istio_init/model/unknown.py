"""What only other programs' rules have: comments, and matches and targets that this program does not know."""

from __future__ import annotations

from istio_init.record import Record


class Comment(Record):
    """-m comment: always matches; a note for people."""

    text: str


# The name of an UnknownMatch for what a rule asks of the packet's header without -m, such as a mask with holes;
# the same as in kernel/xtables/ip_header.py, which a plain run loads.
ENTRY = "ip header"


class UnknownMatch(Record):
    """A match that no kind of model.rules stands for: the extension's name, revision, and data as the kernel keeps it.

    `options` are its options as iptables-save prints them, None where they are not known. One that was read from text
    has no revision (-1), and its options as its data.
    """

    name: str
    revision: int
    data: bytes
    options: str | None = None
    _uncompared = ("options",)


class UnknownTarget(Record):
    """A target that no kind of model.rules stands for; its fields are those of an UnknownMatch."""

    name: str
    revision: int
    data: bytes
    options: str | None = None
    _uncompared = ("options",)
