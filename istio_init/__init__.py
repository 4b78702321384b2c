"""istio-init: programs a pod's network namespace so that a sidecar proxy sees all its TCP traffic.

The Python API is small: make `Options`, turn them into a `Plan` with `plan`, see it with `dump`, have it
applied with `apply`.

    from istio_init import Options, apply, dump, plan

    rules = plan(Options(istio_service_cidr="*", istio_inbound_ports="*", proxy_uid=(1337,), proxy_gid=(1337,)))
    print(dump(rules))
    apply(rules, network_namespace="/var/run/netns/pod")

Nothing is imported before it is used: every pod waits for this package's import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.api import apply, dump, plan
    from istio_init.errors import InitError
    from istio_init.errors_rare import OptionError
    from istio_init.model.rules import Network, PortRange
    from istio_init.options.public import Options
    from istio_init.planning.changes import Changes
    from istio_init.planning.plan import Plan

__all__ = [
    "Changes", "InitError", "Network", "OptionError", "Options", "Plan", "PortRange", "apply", "dump", "plan",
]  # fmt: skip
__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("apply", "dump", "plan"), "istio_init.api"),
    **dict.fromkeys(("Network", "PortRange"), "istio_init.model.rules"),
    "Changes": "istio_init.planning.changes",
    "InitError": "istio_init.errors",
    "OptionError": "istio_init.errors_rare",
    "Options": "istio_init.options.public",
    "Plan": "istio_init.planning.plan",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'istio_init' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
