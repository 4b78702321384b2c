"""The facts that options leave to the machine: is IPv6 in use, which DNS servers there are, who has which id."""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.kernel.netlink.router import Rtnetlink, has_ipv6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.log import Log
    from istio_init.model.rules import Network
    from istio_init.options.table import Options


def settle(options: Options, log: Log) -> Options:
    """The options with what they leave open found out: whether IPv6 is in use, and which DNS servers there are."""
    if options.enable_ipv6 is None:
        options = options.replace(enable_ipv6=_ipv6_in_use(options, log))
    if options.cni_mode and options.redirect_dns and options.dns_servers is None:
        # The resolv.conf in sight is the node's, and the pod's is not written yet.
        options = options.replace(capture_all_dns=True)
    if options.redirect_dns and not options.capture_all_dns:
        if options.dns_servers is None:
            options = options.replace(dns_servers=_nameservers(log))
        if not options.dns_servers:
            log.warn("--redirect-dns: no DNS server in /etc/resolv.conf or --dns-servers; DNS is not captured")
    return options


def _ipv6_in_use(options: Options, log: Log) -> bool:
    """Istio's detection, by the namespace's addresses; where they can't be read, there is nothing to detect."""
    try:
        return has_ipv6(Rtnetlink().addresses(), dual_stack=options.dual_stack)
    except InitError as error:
        log.warn(f"IPv6 is taken as off, the namespace's addresses can't be read: {error}")
        return False


def _nameservers(log: Log) -> tuple[Network, ...]:
    from istio_init.kernel.host.resolv_conf import nameservers

    servers, complaints = nameservers()
    for complaint in complaints:
        log.warn(complaint)
    return servers


def account(kind: str, name: str) -> int | None:
    """The id of a user or group by name, or None; from /etc/passwd and /etc/group."""
    from istio_init.kernel.host import accounts

    return accounts.user_id(name) if kind == "user" else accounts.group_id(name)
