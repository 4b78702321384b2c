"""A large mesh's dump, made from the one for five services: so many clusters, listeners, routes and endpoints."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

from tests.envoy import sidecar

CLUSTERS, LISTENERS = 5000, 2000
SERVICE = "ratings.default.svc.cluster.local"


def large(clusters: int = CLUSTERS, listeners: int = LISTENERS) -> Any:  # noqa: ANN401 (JSON)
    """The dump of a sidecar with so many more clusters and listeners; a virtual host for each listener, too."""
    dump = sidecar.value()
    for part in dump["configs"]:
        for field, count in (
            ("dynamic_active_clusters", clusters),
            ("dynamic_endpoint_configs", clusters),
            ("dynamic_listeners", listeners),
        ):
            if entries := part.get(field):
                http, tcp = (_pattern(entries, name) for name in ("ratings.default", "tcp-echo.default"))
                # One of each kind for each listener, then more.
                entries += [
                    _named(tcp if not http or number % 2 else http, number // (1 + bool(http)))
                    for number in range(count)
                ]
        for each in part.get("dynamic_route_configs", ()):
            hosts = each["route_config"]["virtual_hosts"]
            if each["route_config"]["name"] == "9080":
                hosts[0:0] = [_named(hosts[0], number) for number in range(min(listeners, clusters // 2))]
    return dump


def _pattern(entries: list[Any], name: str) -> Any:  # noqa: ANN401
    """The first entry that names a service, None where none does."""
    return next((each for each in entries if name in json.dumps(each)), None)


def _named(pattern: Any, number: int) -> Any:  # noqa: ANN401
    """The entry under a name and an address of its own."""
    high, low = divmod(number, 250)
    text = json.dumps(pattern)
    for name in ("ratings", "tcp-echo"):
        text = (
            text.replace(f'"{name}"', f'"s{number}"')
            .replace(f'"{name}.', f'"s{number}.')
            .replace(f"||{name}.", f"||s{number}.")
        )
    text = text.replace("10.96.0.10", f"10.97.{high}.{low + 1}").replace("10.96.0.20", f"10.97.{high}.{low + 1}")
    return copy.deepcopy(json.loads(text))


if __name__ == "__main__":
    json.dump(large(*map(int, sys.argv[1:])), sys.stdout)
