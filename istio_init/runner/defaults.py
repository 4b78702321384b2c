"""Resolves defaults from the machine: whether IPv6 is in use, the DNS servers, ids of users and groups."""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.kernel.netlink.router import Rtnetlink, has_address, has_ipv6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.log import Log
    from istio_init.model.rules import Network
    from istio_init.options.table import Options


def resolve_defaults(options: Options, log: Log) -> Options:
    """The options with `enable_ipv6` and `dns_servers` detected where they are unset."""
    if options.enable_ipv6 is None:
        options = options.replace(enable_ipv6=_ipv6_in_use(options, log))
    if options.cni_mode and options.redirect_dns and options.dns_servers is None:
        # The visible resolv.conf is the node's; the pod's is not written yet.
        options = options.replace(capture_all_dns=True)
    if options.redirect_dns and not options.capture_all_dns:
        if options.dns_servers is None:
            options = options.replace(dns_servers=_nameservers(log))
        if not options.dns_servers:
            log.warn("--redirect-dns: no DNS server in /etc/resolv.conf or --dns-servers; DNS is not captured")
    return options


def _ipv6_in_use(options: Options, log: Log) -> bool:
    """Istio's detection by the namespace's addresses; False, with a warning, if they can't be read."""
    try:
        addresses = Rtnetlink().addresses()
        if options.cni_mode and not has_address(addresses):
            log.info("no IPv6 rules: the namespace has no addresses yet; set enable-ipv6 to decide without them")
        return has_ipv6(addresses, dual_stack=options.dual_stack)
    except InitError as error:
        log.warn(f"IPv6 is assumed to be off: the addresses of the namespace can't be read: {error}")
        return False


def _nameservers(log: Log) -> tuple[Network, ...]:
    from istio_init.kernel.host.resolv_conf import nameservers

    servers, warnings = nameservers()
    for warning in warnings:
        log.warn(warning)
    return servers


def account(kind: str, name: str) -> int | None:
    """The id of a user or group by name, or None; from /etc/passwd and /etc/group."""
    from istio_init.kernel.host import accounts

    return accounts.user_id(name) if kind == "user" else accounts.group_id(name)
