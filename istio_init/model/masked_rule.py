"""A policy rule that looks at some bits of the mark: other programs', and those of Istio's ambient mode, have it."""

from __future__ import annotations

from istio_init.model.routing import FLAGS
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Family


class MaskedRule(Record):
    """`ip rule add fwmark MARK/MASK lookup TABLE`: packets whose mark has these bits are routed by that table."""

    family: Family
    mark: int
    mask: int
    table: int

    @property
    def command(self) -> str:
        """The ip(8) command that adds it."""
        return f"ip {FLAGS[self.family]} rule add fwmark {self.mark:#x}/{self.mask:#x} lookup {self.table}"
