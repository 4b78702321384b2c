"""Tracked connections and which of them our rules have captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.capture import AGENT_DNS_PORT, uses_tproxy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.counts import Connection
    from istio_init.options import Options


def captured(connections: Iterable[Connection], options: Options) -> dict[str, int]:
    """How many connections were redirected to the proxy's ports, by what for; with TPROXY, how many bear its mark."""
    names = {
        options.envoy_port: "outbound",
        options.inbound_capture_port: "inbound",
        AGENT_DNS_PORT: "dns",
    }
    found = dict.fromkeys(names.values(), 0)
    if uses_tproxy(options):
        found["marked"] = 0
    for each in connections:
        if each.redirected and each.port in names:
            found[names[each.port]] += 1
        elif "marked" in found and each.mark == options.istio_inbound_tproxy_mark:
            found["marked"] += 1
    return found
