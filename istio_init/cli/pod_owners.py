"""The pod in the manifest that the current verb reads its options from: users, privileges and addresses."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from istio_init.kernel.netlink.router import has_ipv6
from istio_init.model.routing import Address

if TYPE_CHECKING:
    from istio_init.model.rules import Network
    from istio_init.options.privileges import Privileges
    from istio_init.options.table import Options
    from istio_init.options.workload import RunsAs

# Set before a verb runs; empty without --from-pod.
pod_owners: ContextVar[tuple[RunsAs, ...]] = ContextVar("pod_owners", default=())
# The privileges of the init container that applies the rules; None without one, and without --from-pod.
pod_privileges: ContextVar[Privileges | None] = ContextVar("pod_privileges", default=None)
# The addresses in its status; empty where it does not run yet, and without --from-pod.
pod_ips: ContextVar[tuple[Network, ...]] = ContextVar("pod_ips", default=())


def with_ipv6(options: Options, *, default: bool | None) -> Options:
    """The options of a plan with IPv6 on or off: as the pod's addresses in its manifest decide it, else the default."""
    if options.enable_ipv6 is not None:
        return options
    # In the kernel's order, in which Istio asks: all of IPv4, then those of IPv6.
    addresses = tuple(Address(each, "eth0") for each in sorted(pod_ips.get(), key=lambda each: len(each.address)))
    in_use = has_ipv6(addresses, dual_stack=options.dual_stack) if addresses else default
    return options.replace(enable_ipv6=in_use)
