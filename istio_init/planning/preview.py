"""The plan as text: what iptables-save would print once it is applied, routing as `ip` commands in comments."""

from __future__ import annotations

from istio_init.formats.iptables_save import dump as dump_ruleset
from istio_init.model.routing import Address, command
from istio_init.model.rules import FAMILIES, IPV6, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family
    from istio_init.planning.plan import Plan


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
    from istio_init.formats.nft.layout import layout
    from istio_init.formats.nft.listing import listing
    from istio_init.model.inet import NAMES

    routing = "".join(f"# {command(entry)}\n" for entry in plan.routing)
    laid_out = [layout(plan.rulesets, name) for name in NAMES]
    return routing + listing(table for table in laid_out if table.chains)


def entry_family(entry: RoutingEntry) -> Family:
    """The address family of a routing entry."""
    if isinstance(entry, Address):
        network: Network = entry.network
        return network.family
    return entry.family
