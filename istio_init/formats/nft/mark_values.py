"""What a statement of nft gives a mark, such as `meta mark set ct mark & 0xff`, as targets of iptables."""

from __future__ import annotations

from istio_init.model.extensions import RestoreMark, SaveMark, SetMark
from istio_init.model.unclear import ALL_BITS
from istio_init.model.unknown import UnknownTarget
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from istio_init.model.rules import Target


class MarkValue(Record):
    """(`source` & keep) ^ flip, where the source is a mark or nothing; with a modulus flip + a number below it."""

    source: Literal["mark", "ct mark", ""]
    keep: int = 0
    flip: int = 0
    modulus: int = 0

    def masked(self, mask: int, flip: int) -> MarkValue:
        """The value behind a further operation. ValueError for one on a number that is not known."""
        if self.modulus:
            raise ValueError("bits of a number that is not known")
        return self.replace(keep=self.keep & mask, flip=(self.flip & mask) ^ flip)

    def target(self, field: Literal["mark", "ct mark"]) -> Target:
        """The target that gives a mark this value. ValueError where iptables has none."""
        if self.modulus:
            name = "meta mark" if field == "mark" else field
            options = f"{name} set hash mod {self.modulus} offset {self.flip}"
            return UnknownTarget("nftables", -1, options.encode(), options)
        if self.source in {"", field}:
            mask = ALL_BITS & ~self.keep
            if field == "mark":
                return SetMark(self.flip, mask)
            options = f"--set-xmark {self.flip:#x}/{mask:#x}"
            return UnknownTarget("CONNMARK", -1, options.encode(), options)
        if self.flip:
            raise ValueError("bits flipped in another mark")
        return RestoreMark(ALL_BITS, self.keep) if field == "mark" else SaveMark(self.keep, ALL_BITS)
