"""Options and a pod's addresses to what capture by eBPF is told (SocketCapture), and what it cannot do.

The questions that the programs ask of a socket are those of the rules in capture.py, in their order.
"""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.model import parsers
from istio_init.model.rules import IPV4, IPV6
from istio_init.model.socket_capture import SocketCapture
from istio_init.planning.capture import AGENT_DNS_PORT, PASSTHROUGH, captures_dns, uses_tproxy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Network
    from istio_init.model.socket_capture import Scope
    from istio_init.options.table import Options

FLAG = "--capture-backend ebpf"
MOST_OWNERS = 4  # as many users, and as many groups, as struct pod has places for
FROM_THE_NODE = (
    f"{FLAG}: works from the node (istio-init-cni), not inside a pod: "
    "it needs the node's cgroups and /sys/fs/bpf; use --capture-backend iptables"
)
_WITH_IPTABLES = "goes with --capture-backend iptables only"


def socket_capture(options: Options, addresses: tuple[Network, ...]) -> SocketCapture:
    """What is captured of a pod with these addresses. `options` have their defaults resolved and are not refused."""
    ports, networks = options.istio_inbound_ports, options.istio_service_cidr
    listed = () if networks == parsers.ALL else networks
    groups = options.istio_outbound_owner_groups
    return SocketCapture(
        addresses=own_addresses(addresses),
        uids=options.proxy_uid,
        gids=options.proxy_groups,
        outbound_port=options.envoy_port,
        inbound_port=options.inbound_capture_port,
        tunnel_port=options.inbound_tunnel_port,
        dns_port=AGENT_DNS_PORT,
        inbound=_scope(ports),
        # -d is for -b '*' alone, as in the rules.
        inbound_ports=options.istio_local_exclude_ports if ports == parsers.ALL else ports,
        outbound=_scope(networks),
        outbound_networks=listed,
        excluded_networks=options.istio_service_exclude_cidr,
        outbound_ports=options.istio_outbound_ports,
        excluded_ports=options.istio_local_outbound_ports_exclude,
        groups=None if groups == parsers.ALL else groups,
        excluded_groups=options.istio_outbound_owner_groups_exclude if groups == parsers.ALL else (),
        dns=_dns(options),
        dns_servers=() if options.capture_all_dns else options.dns_servers or (),
        loopback=options.istio_outbound_ipv4_loopback_cidr,
        loopback_captured=any(map(parsers.is_loopback, listed)),
        ipv6=bool(options.enable_ipv6),
        tproxy=uses_tproxy(options),
        mark=options.istio_inbound_tproxy_mark,
    )


def _scope(value: object) -> Scope:
    return "all" if value == parsers.ALL else "list" if value else "none"


def _dns(options: Options) -> Scope:
    if not captures_dns(options):
        return "none"
    return "all" if options.capture_all_dns else "list"


def refuse(options: Options) -> None:
    """InitError, naming the flag, where the options ask for what capture by eBPF cannot do; the first of them."""
    for refusal in refusals(options):
        raise InitError(refusal)


def refusals(options: Options) -> Iterator[str]:
    """Each option that capture by eBPF cannot do, with the reason."""
    if not options.network_namespace and not options.dry_run:
        yield FROM_THE_NODE
    if options.kube_virt_interfaces:
        yield (
            f"--kube-virt-interfaces (-k): {','.join(options.kube_virt_interfaces)!r}: a virtual machine's traffic is "
            "forwarded, no socket of the pod sends it; use --capture-backend iptables"
        )
    if options.istio_exclude_interfaces:
        yield (
            f"--istio-exclude-interfaces (-c): {','.join(options.istio_exclude_interfaces)!r}: "
            "connect(2) does not know the interface; use --capture-backend iptables"
        )
    if options.istio_inbound_exclude_cidr:
        yield f"--istio-inbound-exclude-cidr: {_WITH_IPTABLES}"
    if options.exclude_uids_for_ports:
        yield f"--exclude-uids-for-ports: {_WITH_IPTABLES}"
    if options.rule_comments:
        yield f"--rule-comments: {_WITH_IPTABLES}"
    for flag, ids in (("--proxy-uid (-u)", options.proxy_uid), ("--proxy-gid (-g)", options.proxy_gid)):
        if len(ids) > MOST_OWNERS:
            yield f"{flag}: {','.join(map(str, ids))!r}: at most {MOST_OWNERS} with {FLAG}"
    yield from _other_backends(options)


def _other_backends(options: Options) -> Iterator[str]:
    if options.native_nftables:
        yield f"--native-nftables: {_WITH_IPTABLES}"
    if options.force_iptables_binary:
        yield f"--force-iptables-binary: {options.force_iptables_binary!r}: {_WITH_IPTABLES}"
    if options.iptables_engine != "libiptc":
        yield f"--iptables-engine: {options.iptables_engine!r}: {_WITH_IPTABLES}"
    if options.compat_version != "latest":
        yield f"--compat-version: {options.compat_version!r}: {_WITH_IPTABLES}"


def own_addresses(addresses: tuple[Network, ...]) -> tuple[Network, ...]:
    """A namespace's addresses as single hosts, without loopback and ::6; link-local ones last.

    The first of each family is what captured connections come from.
    """
    hosts = tuple(each.replace(prefix=32 if each.family == IPV4 else 128) for each in addresses)
    own = [each for each in hosts if not parsers.is_loopback(each) and each != PASSTHROUGH[IPV6]]
    return tuple(sorted(own, key=_is_link_local))


def _is_link_local(address: Network) -> bool:
    packed = address.address
    return packed[:2] == b"\xa9\xfe" if len(packed) == 4 else packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
