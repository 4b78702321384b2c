"""Waiting for what the kernel finishes a moment after it said yes."""

from __future__ import annotations

import json

from integration.kit.namespace import Namespace


def settled(namespace: Namespace) -> None:
    """Return once every IPv6 address of lo, which has to be up, has its route and is tentative no more."""
    while True:
        shown = json.loads(namespace.run("ip", "-j", "-6", "addr", "show", "dev", "lo"))
        desired = {info["local"] for link in shown for info in link.get("addr_info", ())}
        routes = json.loads(namespace.run("ip", "-j", "-6", "route", "show", "table", "local", "dev", "lo") or "[]")
        if desired <= {route["dst"] for route in routes}:
            return
