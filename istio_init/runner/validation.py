"""`--run-validation`: from Options to the paths that kernel/probe/dial.py dials, and must be captured."""

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
    """Verify by real connections that traffic is captured; ValidationFailed names the path that is not."""
    # This run has already applied its own rules, but a CNI plugin may still be applying them.
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
        captured_destinations(options),
        () if groups == parsers.ALL else groups,
        options.istio_outbound_owner_groups_exclude if groups == parsers.ALL else (),
        options.capture_backend == "ebpf",
    )


def captured_destinations(options: Options) -> tuple[Network, ...]:
    """Remote destinations for which a connection to the probe port is captured.

    Empty if interfaces are excluded, since the kernel decides which one a connection leaves by.
    """
    port = options.iptables_probe_port
    excluded_port = any(ports.low <= port <= ports.high for ports in options.istio_local_outbound_ports_exclude)
    # The probe may run as one of these users, with a port that is excluded for them.
    excluded_port |= any(protocol == TCP for protocol, _, _ in options.exclude_uids_for_ports)
    if excluded_port or options.istio_exclude_interfaces:
        return ()
    destinations = UNASSIGNED if options.istio_service_cidr == parsers.ALL else options.istio_service_cidr
    if any(ports.low <= port <= ports.high for ports in options.istio_outbound_ports):
        destinations = (*UNASSIGNED, *destinations)
    excluded = options.istio_service_exclude_cidr
    return tuple(network for network in destinations if not any(_overlap(network, other) for other in excluded))


def _overlap(one: Network, other: Network) -> bool:
    """Whether two networks have an address in common."""
    if one.family != other.family:
        return False
    prefix = min(one.prefix, other.prefix)
    return parsers.masked(one.address, prefix) == parsers.masked(other.address, prefix)
