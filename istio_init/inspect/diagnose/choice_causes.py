"""Causes that the options themselves are: destinations, ports, interfaces and users that are excluded on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import network_text, ports_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import (
    APP,
    HOSTS,
    followed,
    inbound,
    inside,
    is_captured,
    is_link_local,
    outbound,
    sent,
)
from istio_init.model import parsers, parsers_rare
from istio_init.model.packet import is_named
from istio_init.model.rules import LOOPBACK_INTERFACE
from istio_init.options.annotations import SIDECAR_PORTS

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Situation
    from istio_init.model.rules import Family, PortRange
    from istio_init.simulate.path import PacketPath

OWN_PORTS = frozenset(map(int, SIDECAR_PORTS.split(",")))
TRAFFIC = "traffic.sidecar.istio.io/"
MOST_SHOWN = 6
ROOT = 0


def excluded_interface(about: Situation) -> Cause | None:
    """An interface of the pod that is excluded, its uplink or a second network's."""
    for name in about.options.istio_exclude_interfaces:
        for device in about.interfaces:
            if device == LOOPBACK_INTERFACE or not is_named(name, device):
                continue
            second = device != about.facts.uplink
            which = f"{device}, a second network of the pod," if second else f"{device}, the pod's own interface,"
            return Cause(
                "second-network" if second else "excluded-interface",
                f"calls by {device} bypass the sidecar",
                f"interface {which} is excluded",
                (f"-c {name} ({TRAFFIC}excludeInterfaces), from {about.origin}",),
                (f"take {name} out of the annotation {TRAFFIC}excludeInterfaces, and create the pod anew",),
                _by(about, device),
            )
    return None


def virtual_machine_interface(about: Situation) -> Cause | None:
    """The pod's own interface named as a virtual machine's: what comes in by it counts as outbound."""
    for name in about.options.kube_virt_interfaces:
        for device in about.interfaces:
            if device == about.facts.uplink and is_named(name, device):
                return Cause(
                    "kubevirt-interface",
                    "inbound calls do not reach the sidecar's inbound listener",
                    f"interface {device}, the pod's own, is named as a virtual machine's (kubevirt): "
                    "calls that come in by it count as outbound",
                    (f"-k {name} (istio.io/reroute-virtual-interfaces, kubevirtInterfaces), from {about.origin}",),
                    (f"take {name} out of the annotation; name only the machine's own interfaces, such as k6t-eth0",),
                    _by(about, device),
                )
    return None


def _by(about: Situation, device: str) -> PacketPath:
    family = about.families[0]
    return followed(about, inbound(about.facts, HOSTS[family][0], 8080, device))


def second_network(about: Situation) -> Cause | None:
    """Calls by a second network that are not captured where those by the first are."""
    for device in about.interfaces:
        if device in {LOOPBACK_INTERFACE, about.facts.uplink} or not about.options.istio_inbound_ports:
            continue
        for family in about.families:
            own = about.facts.primary(device, HOSTS[family][0])
            if own is None or is_link_local(own):
                continue
            first, other = (
                followed(about, inbound(about.facts, HOSTS[family][0], 8080, each))
                for each in (about.facts.uplink, device)
            )
            if _reached(first) and not _reached(other):
                return Cause(
                    "second-network",
                    f"calls by {device} bypass the sidecar",
                    f"the second network's interface {device} is not captured, {about.facts.uplink} is",
                    (f"{device} has addresses of its own",),
                    ("make the rules for all interfaces: no -c, and no rule of another program for it",),
                    other,
                )
    return None


def _reached(path: PacketPath) -> bool:
    return path.legs[0].end in {"outbound", "inbound"}


def excluded_destinations(about: Situation) -> Cause | None:
    """-x, and -i with a list."""
    options, family = about.options, about.families[0]
    if options.istio_service_exclude_cidr and options.istio_service_cidr:
        networks = options.istio_service_exclude_cidr
        named = next((each for each in networks if each.family in about.families), networks[0])
        listed = ", ".join(map(network_text, networks[:MOST_SHOWN]))
        return Cause(
            "excluded-cidr",
            f"calls to {listed} bypass the sidecar",
            f"the destination is excluded: {listed}",
            (f"-x ({TRAFFIC}excludeOutboundIPRanges), from {about.origin}",),
            (f"take the range out of the annotation {TRAFFIC}excludeOutboundIPRanges, and create the pod anew",),
            followed(about, outbound(about.facts, inside(named), 443)),
        )
    if options.istio_service_cidr == parsers.ALL:
        return None
    included = [network_text(each) for each in options.istio_service_cidr[:MOST_SHOWN]]
    ports = [ports_text(each) for each in options.istio_outbound_ports[:MOST_SHOWN]]
    listed = " and ".join(
        [*([", ".join(included)] if included else []), *([f"port {', '.join(ports)}"] if ports else [])]
    )
    return Cause(
        "not-included",
        f"calls to other destinations than {listed} bypass the sidecar" if listed else "all calls bypass the sidecar",
        f"only {listed} is captured outbound" if listed else "no destination is captured outbound: -i is empty",
        (f"-i ({TRAFFIC}includeOutboundIPRanges) and -q (includeOutboundPorts), from {about.origin}",),
        (f"name the destination in {TRAFFIC}includeOutboundIPRanges, or *, and create the pod anew",),
        _missed(about, family),
    )


def _missed(about: Situation, family: Family) -> PacketPath:
    """A call that is not captured, or the first one tried."""
    paths = [followed(about, outbound(about.facts, host, port)) for host in HOSTS[family] for port in (443, 8443)]
    return next((each for each in paths if not is_captured(each)), paths[0])


def excluded_outbound_ports(about: Situation) -> Cause | None:
    """-o, but for the sidecar's own ports."""
    options, family = about.options, about.families[0]
    if ports := _others(options.istio_local_outbound_ports_exclude):
        path = followed(about, outbound(about.facts, HOSTS[family][0], ports[0].low))
        return _ports_cause("calls", ports, "-o", "excludeOutboundPorts", path, about)
    return None


def excluded_inbound_ports(about: Situation) -> Cause | None:
    """-d, but for the sidecar's own ports, and -b with a list."""
    options, family = about.options, about.families[0]
    if (ports := _others(options.istio_local_exclude_ports)) and options.istio_inbound_ports == parsers.ALL:
        path = followed(about, inbound(about.facts, HOSTS[family][0], ports[0].low))
        return _ports_cause("inbound calls", ports, "-d", "excludeInboundPorts", path, about)
    if options.istio_inbound_ports != parsers.ALL:
        listed = ",".join(ports_text(each) for each in options.istio_inbound_ports[:MOST_SHOWN])
        return Cause(
            "ports-not-included",
            f"inbound calls to other ports than {listed} bypass the sidecar"
            if listed
            else "all inbound calls bypass the sidecar",
            f"only these inbound ports are captured: {listed}"
            if listed
            else "no inbound port is captured: -b is empty",
            (f"-b ({TRAFFIC}includeInboundPorts), from {about.origin}",),
            (f"name the port in {TRAFFIC}includeInboundPorts, or *, and create the pod anew",),
            None,
        )
    return None


def _others(ports: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
    return tuple(each for each in ports if not OWN_PORTS.issuperset(range(each.low, each.high + 1)))


def _ports_cause(  # noqa: PLR0913, PLR0917 (a cause's parts)
    what: str, ports: tuple[PortRange, ...], flag: str, annotation: str, path: PacketPath, about: Situation
) -> Cause:
    listed = ", ".join(map(ports_text, ports[:MOST_SHOWN]))
    return Cause(
        "excluded-port",
        f"{what} to port {listed} bypass the sidecar",
        f"the port is excluded: {listed}",
        (f"{flag} ({TRAFFIC}{annotation}), from {about.origin}",),
        (f"take the port out of the annotation {TRAFFIC}{annotation}, and create the pod anew",),
        path,
    )


def root_spared(about: Situation) -> Cause | None:
    """Root among the proxy's users: whatever runs as root is not captured."""
    options, family = about.options, about.families[0]
    kind, flag = ("uid", "-u") if ROOT in options.proxy_uid else ("gid", "-g")
    if ROOT not in (*options.proxy_uid, *options.proxy_gid) or not about.backends:
        return None
    path = sent(about, family, (ROOT, APP[1]) if kind == "uid" else (APP[0], ROOT))
    if is_captured(path):
        return None
    listed = ",".join(map(str, options.proxy_uid if kind == "uid" else options.proxy_gid))
    return Cause(
        "root-spared",
        "calls of every program that runs as root bypass the sidecar",
        f"{kind} 0 (root) is among those of the proxy, whose calls are not captured: {flag} {listed}",
        (f"{flag} {listed}, from {about.origin}",),
        (f"make the rules with {flag} 1337 alone, or run no app as root",),
        path,
    )


def excluded_owners(about: Situation) -> Cause | None:
    """Groups and users whose calls are left alone."""
    options = about.options
    if options.istio_outbound_owner_groups != parsers.ALL:
        listed = ", ".join(map(str, options.istio_outbound_owner_groups))
        what, flag = f"only calls of group {listed or 'none'} are captured", "--istio-outbound-owner-groups"
    elif options.istio_outbound_owner_groups_exclude:
        listed = ", ".join(map(str, options.istio_outbound_owner_groups_exclude[:MOST_SHOWN]))
        what, flag = f"calls of group {listed} are excluded", "--istio-outbound-owner-groups-exclude"
    elif options.exclude_uids_for_ports:
        listed = parsers_rare.ports_of_users_text(options.exclude_uids_for_ports[:MOST_SHOWN])
        what, flag = f"calls of some users to some ports are excluded: {listed}", "--exclude-uids-for-ports"
    elif options.istio_inbound_exclude_cidr:
        listed = ", ".join(map(network_text, options.istio_inbound_exclude_cidr[:MOST_SHOWN]))
        what, flag = f"inbound calls from {listed} are excluded", "--istio-inbound-exclude-cidr"
    else:
        return None
    return Cause(
        "excluded-owner", "some calls bypass the sidecar on purpose", what, (f"{flag}, from {about.origin}",),
        (f"change {flag}, and create the pod anew",),
    )  # fmt: skip
