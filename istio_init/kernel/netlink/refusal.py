"""The kernel's refusals of policy rules, routes and addresses, with what the reader can do about them."""

from __future__ import annotations

import errno

from istio_init import errors
from istio_init.model import routing
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import IPV6, LOOPBACK_INTERFACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry, Verb


def explain(entry: RoutingEntry, verb: Verb, refused: OSError) -> errors.KernelError:
    """What to raise where the kernel has refused to add an entry or to take it away."""
    number = refused.errno or 0
    name = errno.errorcode.get(number, str(number))
    remedy = _remedy(entry, number)
    return errors.KernelError(f"{routing.command(entry, verb)}: {refused.strerror} ({name}); {remedy}", number)


def _remedy(entry: RoutingEntry, number: int) -> str:
    """What the reader can do about it."""
    family = entry.network.family if isinstance(entry, Address) else entry.family
    device = LOOPBACK_INTERFACE if isinstance(entry, PolicyRule) else entry.device
    match number:
        case errno.EPERM:
            return "this needs the capability NET_ADMIN in the user namespace that owns this network namespace"
        case errno.ENETDOWN:
            # In a pod lo is always up. If it is down, the namespace was created by hand or lo was taken down:
            # nothing works there, and bringing it up unasked would hide the reason.
            return f"{device} is down; bring it up: ip link set {device} up"
        case errno.EACCES if family == IPV6:
            return f"IPv6 is off: set net.ipv6.conf.{device}.disable_ipv6=0 (and all.disable_ipv6), or leave IPv6 out"
        case errno.EAFNOSUPPORT | errno.EOPNOTSUPP if family == IPV6:
            return "the kernel has no IPv6, or was started with ipv6.disable=1; leave IPv6 out: --no-enable-ipv6"
        case errno.EAFNOSUPPORT | errno.EOPNOTSUPP:
            return "the kernel was built without CONFIG_IP_MULTIPLE_TABLES, which TPROXY needs"
        case errno.ENODEV:
            return f"look for {device} here: ip link show"
        case _:
            return f"see what is in its way: {_look(entry)}"


def _look(entry: RoutingEntry) -> str:
    """The `ip` command that shows what is in the place of the entry."""
    match entry:
        case PolicyRule(family):
            return f"ip {routing.FLAGS[family]} rule show"
        case Route(family, _, table):
            return f"ip {routing.FLAGS[family]} route show table {table}"
        case Address(network, device):
            return f"ip {routing.FLAGS[network.family]} addr show dev {device}"
        case _:
            errors.assert_never(entry)
