"""What the order of tables that have one priority would change: the kernel does not tell which of them comes first."""

from __future__ import annotations

from istio_init.simulate.path import follow
from istio_init.simulate.report import fate, verdict
from istio_init.simulate.trace import ties

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.model.packet import Facts
    from istio_init.model.rules import Hook, Ruleset
    from istio_init.simulate.path import PacketPath, Proxy
    from istio_init.simulate.purposes import Purpose, RuleLocation


HOOKS: tuple[Hook, ...] = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def unknown_orders(ruleset: Ruleset, facts: Facts) -> list[str]:
    """Which tables have one priority at a hook, each pair in words."""
    pairs = ((hook, *pair) for hook in HOOKS for pair in ties(ruleset, hook, facts))
    return [
        f"{first} and {second} have the same priority at {hook}, and the kernel does not tell which of them comes first"
        for hook, first, second in pairs
    ]


def other_order(
    ruleset: Ruleset, usual: PacketPath, facts: Facts, envoy: Proxy, reasons: Mapping[RuleLocation, Purpose]
) -> str:
    """What happens to the packet if Istio's tables come first where the order is not known; empty if it is the same."""
    hooks = dict.fromkeys(each.hook for leg in usual.legs for each in leg.traces)
    pairs = [(hook, *pair) for hook in hooks for pair in ties(ruleset, hook, facts)]
    if not pairs:
        return ""
    other = follow(ruleset, usual.legs[0].packet, facts.replace(others_last=True), envoy)
    if (verdict(other), other.end) == (verdict(usual), usual.end):
        return ""
    hook, first, second = pairs[0]
    return (
        f"{first} and {second} have the same priority at {hook}, and the kernel does not tell which of them comes "
        f"first; if it is {second}: {verdict(other)}: {fate(other.legs[0], reasons)}"
    )
