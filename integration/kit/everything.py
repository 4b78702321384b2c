"""All that a run could leave behind in a namespace, as the kernel's own tools show it."""

from __future__ import annotations

from integration.kit.namespace import Namespace

LOOKS = (
    "cat /proc/net/ip_tables_names",
    "cat /proc/net/ip6_tables_names",
    "nft list ruleset",
    "ip -4 rule",
    "ip -6 rule",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip addr",
    "ip link",
    "sysctl -a --pattern ^net.(ipv4|ipv6|netfilter).*(mark|forward|accept_local|rp_filter|disable_ipv6)",
)
SAVES = ("iptables-legacy-save -c", "ip6tables-legacy-save -c")


def state(namespace: Namespace) -> list[str]:
    """What exists; the legacy tables are read only where there are some, as reading makes them."""
    shown = [namespace.run(*each.split()) for each in LOOKS]
    names = [shown[0], shown[1]]
    saves = [namespace.run(*each.split()) for each, there in zip(SAVES, names, strict=True) if there]
    return shown + [line for save in saves for line in save.splitlines() if not line.startswith("#")]
