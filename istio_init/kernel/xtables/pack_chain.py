"""Encodes a chain's rules: one by one, and long runs at once (packed_run.py)."""

from __future__ import annotations

import _struct as struct  # struct.py only hands it on

from istio_init.kernel.xtables.encode_rule import pack
from istio_init.model.rules import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.model.rules import Chain, Family

# With fewer values, packing each rule by itself is faster.
_SHORT = 4


def pack_chain(chain: Chain, family: Family) -> list[bytes | PackedRun]:
    """The entries of a chain with the signature, a long run of rules as one PackedRun. Errors are those of `pack`."""
    packed: list[bytes | PackedRun] = []
    for part in chain.parts:
        if isinstance(part, Run):
            packed += _packed(part, family)
        else:
            packed.append(pack(part, family))
    return packed


def _packed(run: Run, family: Family) -> list[bytes | PackedRun]:
    if len(run.values) >= _SHORT:
        try:
            from istio_init.kernel.xtables.packed_run import PackedRun

            return [PackedRun(run, family)]
        except (ValueError, OverflowError, struct.error):  # type: ignore[attr-defined]
            pass  # rule by rule, the one that can't be packed is found
    return [pack(rule, family) for rule in run.rules()]


def entries_of(packed: Iterable[bytes | PackedRun]) -> Iterator[bytes]:
    """The entries one by one."""
    for part in packed:
        if isinstance(part, bytes):
            yield part
        else:
            yield from part.entries()
