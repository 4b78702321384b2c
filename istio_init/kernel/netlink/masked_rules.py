"""The policy rules that look at some bits of the mark, such as `fwmark 0x111/0xfff` of Istio's ambient mode.

No plan has them, so a run neither reads nor writes them.
"""

from __future__ import annotations

from istio_init.kernel.netlink.channel import RtnetlinkChannel, attributes
from istio_init.kernel.netlink.router import FAMILIES
from istio_init.kernel.netlink.routing_messages import (
    ALL_BITS,
    FR_ACT_TO_TBL,
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_SUPPRESS_PREFIXLEN,
    FRA_TABLE,
    PLAIN,
    ROUTE,
    RTM_GETRULE,
    WORD,
)
from istio_init.model.masked_rule import MaskedRule


def masked_rules() -> tuple[MaskedRule, ...]:
    """Those of the calling thread's namespace, in the kernel's order. KernelError if they can't be read."""
    with RtnetlinkChannel() as channel:
        dumped = channel.dump("policy rules", RTM_GETRULE, ROUTE.pack(*[0] * 9))
        return tuple(rule for data in dumped if (rule := _masked_rule(data)))


def _masked_rule(data: bytes) -> MaskedRule | None:
    """The MaskedRule of an RTM_NEWRULE message; None where it looks at all bits, at none, or at anything else."""
    number, *selectors, _table, _protocol, _scope, action, flags = ROUTE.unpack_from(data)
    attrs = attributes(data[ROUTE.size :])
    if number not in FAMILIES or any(selectors) or flags or action != FR_ACT_TO_TBL or not attrs.keys() <= PLAIN:
        return None
    words = {kind: WORD.unpack(value)[0] for kind, value in attrs.items() if len(value) == WORD.size}
    mask = words.get(FRA_FWMASK, 0)
    if mask in {0, ALL_BITS} or words.get(FRA_SUPPRESS_PREFIXLEN, ALL_BITS) != ALL_BITS:
        return None
    return MaskedRule(FAMILIES[number], words.get(FRA_FWMARK, 0), mask, words[FRA_TABLE])
