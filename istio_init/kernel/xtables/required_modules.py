"""The parts of an encoded entry, and the kernel's extensions that it needs; writes and reads no table."""

from __future__ import annotations

from istio_init.kernel.xtables.encode_match import HEAD
from istio_init.kernel.xtables.encode_rule import OFFSETS, SIGNATURE, pack
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.model.rules import Jump, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from istio_init.model.rules import Family, Rule


def entry_size(start: bytes | bytearray, family: Family) -> int:
    """The size of an entry in bytes, from its header."""
    size: int = OFFSETS.unpack_from(start, LAYOUTS[family].struct.size + len(SIGNATURE))[1]
    return size


def extensions(rule: Rule, family: Family) -> Iterator[tuple[Literal["match", "target"], str, int]]:
    """The kernel's extensions that a rule needs: kind, name and revision."""
    entry = pack(rule, family)
    layout = LAYOUTS[family]
    target, _ = OFFSETS.unpack_from(entry, layout.struct.size + len(SIGNATURE))
    at = layout.size
    while at < target:
        size, name, revision = HEAD.unpack_from(entry, at)
        yield "match", name.partition(b"\0")[0].decode(errors="surrogateescape"), revision
        at += size
    if not isinstance(rule.target, Verdict | Jump):
        _, name, revision = HEAD.unpack_from(entry, target)
        yield "target", name.partition(b"\0")[0].decode(errors="surrogateescape"), revision
