"""The plan as text: what iptables-save would print once it is applied, routing as `ip` commands in comments."""

from __future__ import annotations

from istio_init.netfilter import FAMILIES, IPV6, Network
from istio_init.routing import Address, command
from istio_init.save import dump as dump_ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.netfilter import Family
    from istio_init.plans import Plan
    from istio_init.routing import RoutingEntry


def dump(plan: Plan, families: tuple[Family, ...] = FAMILIES) -> str:
    """The plan's tables as iptables-save prints them, counters zero: IPv4 first, then IPv6 behind a comment line.

    With one family the text can be piped into iptables-restore or ip6tables-restore. The tables are those
    that hold something, each from its `*table` line to `COMMIT`.
    """
    parts = []
    for family in families:
        ruleset = plan.ruleset(family)
        if ruleset is None:
            continue
        if family == IPV6 and len(families) > 1:
            parts.append("# IPv6: for ip6tables-restore\n")
        parts.extend(f"# {command(entry)}\n" for entry in plan.routing if entry_family(entry) == family)
        parts.append(dump_ruleset(ruleset))
    return "".join(parts)


def dump_nftables(plan: Plan) -> str:
    """The plan's tables as `nft list table` prints them, counters zero; routing in comments before them."""
    from istio_init.nft import NAMES
    from istio_init.nft_layout import layout
    from istio_init.nft_text import listing

    routing = "".join(f"# {command(entry)}\n" for entry in plan.routing)
    laid_out = [layout(plan.rulesets, name) for name in NAMES]
    return routing + listing(table for table in laid_out if table.chains)


def entry_family(entry: RoutingEntry) -> Family:
    """The address family of a routing entry."""
    if isinstance(entry, Address):
        network: Network = entry.network
        return network.family
    return entry.family
