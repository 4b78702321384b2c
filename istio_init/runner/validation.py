"""What `--run-validation` expects of the rules: from Options to the paths that kernel/probe/dial.py dials."""

from __future__ import annotations

from istio_init.kernel.probe.dial import Expected
from istio_init.kernel.probe.dial import validate as dial
from istio_init.model import parsers
from istio_init.model.rules import FAMILIES, IPV4, TCP, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.log import Log
    from istio_init.options.table import Options

# Addresses that no host has: TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849).
UNASSIGNED = (Network(b"\xc0\x00\x02\x01", 32), Network(bytes.fromhex("20010db8") + bytes(11) + b"\1", 128))


def validate(options: Options, log: Log) -> None:
    """Prove by real connections that traffic is captured; ValidationFailed says which path was not."""
    # Rules that this very run applied are there, or they are not; those of a CNI plugin may be on their way.
    for result in dial(expected(options), options.probe_timeout, retry=options.skip_rule_apply):
        log.info(f"validation: {result.text}")


def expected(options: Options) -> Expected:
    """The paths that the rules for these options capture."""
    groups = options.istio_outbound_owner_groups
    return Expected(
        FAMILIES if options.enable_ipv6 else (IPV4,),
        options.envoy_port,
        options.inbound_capture_port,
        options.iptables_probe_port,
        options.proxy_uid,
        options.proxy_groups,
        captured(options),
        () if groups == parsers.ALL else groups,
        options.istio_outbound_owner_groups_exclude if groups == parsers.ALL else (),
    )


def captured(options: Options) -> tuple[Network, ...]:
    """Destinations off this host that an application's connection to the probe port is captured at.

    None where interfaces are excluded: which one leads there is for the kernel to say.
    """
    port = options.iptables_probe_port
    excluded_port = any(ports.low <= port <= ports.high for ports in options.istio_local_outbound_ports_exclude)
    # The probe may come from one of these users, with a port that is left alone for them.
    excluded_port |= any(protocol == TCP for protocol, _, _ in options.exclude_uids_for_ports)
    if excluded_port or options.istio_exclude_interfaces:
        return ()
    wanted = UNASSIGNED if options.istio_service_cidr == parsers.ALL else options.istio_service_cidr
    if any(ports.low <= port <= ports.high for ports in options.istio_outbound_ports):
        wanted = (*UNASSIGNED, *wanted)
    excluded = options.istio_service_exclude_cidr
    return tuple(network for network in wanted if not any(_overlap(network, other) for other in excluded))


def _overlap(one: Network, other: Network) -> bool:
    """Whether two networks have an address in common."""
    if one.family != other.family:
        return False
    prefix = min(one.prefix, other.prefix)
    return parsers.masked(one.address, prefix) == parsers.masked(other.address, prefix)
