"""Causes in the pod's network beside the rules: routes, policy rules, IPv6, forwarding, networks inside of the pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import network_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import APP_PORTS, CLIENT_PORT, HOSTS, POD, calls_in, has_global
from istio_init.model.packet import Packet
from istio_init.model.rules import IPV4, IPV6, LOOPBACK_INTERFACE, TCP
from istio_init.planning.capture import uses_tproxy

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Situation

# Bridges of container and virtual machine programs.
INNER_BRIDGES = ("docker0", "br-", "podman", "cni-podman", "virbr", "lxcbr", "lxdbr")
DISABLE_IPV6 = "net/ipv6/conf/{}/disable_ipv6"
FORWARDING = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}


def no_route(about: Situation) -> Cause | None:
    """No way out of the pod: the kernel refuses a call before any rule sees it."""
    lookup = about.facts.lookup
    if lookup is None or not about.backends or not about.interfaces:
        return None
    for family in about.families:
        if family == IPV6 and not has_global(about.facts, IPV6):
            continue
        packets = [Packet("OUTPUT", TCP, bytes(len(host)), host, CLIENT_PORT, 443, uid=1000) for host in HOSTS[family]]
        answers = [lookup.sent(each, local_source=False) for each in packets]
        if any(answer is not None and not answer.refused for answer in answers):
            continue
        why = next((answer.refused for answer in answers if answer), "Network is unreachable")
        devices = sorted(set(about.interfaces) - {LOOPBACK_INTERFACE})
        return Cause(
            "no-route",
            "calls fail at once, before any rule sees them",
            f"no {family.replace('ip', 'IP')} route leads out of the pod",
            (f"the kernel's answer for every other host: {why}", f"interfaces: {', '.join(devices) or 'lo alone'}"),
            ("look at ip route and ip link in the pod: is its interface up, has the CNI plugin made its routes?",),
        )
    return None


def ipv6_disabled(about: Situation) -> Cause | None:
    """IPv6 is wanted, and switched off by a sysctl."""
    if IPV6 not in about.families or not about.backends:
        return None
    names = ("all", LOOPBACK_INTERFACE, about.facts.uplink)
    off = [path for name in names if about.sysctls.get(path := DISABLE_IPV6.format(name))]
    if not off:
        return None
    dotted = [path.replace("/", ".") for path in off]
    everywhere = not has_global(about.facts, IPV6)
    return Cause(
        "ipv6-disabled",
        "calls by IPv6 fail" if everywhere else "captured calls by IPv6 do not arrive",
        f"IPv6 is disabled in the pod by sysctl, and the rules want it: {dotted[0]} is 1",
        (*(f"{name} = 1" for name in dotted), f"--enable-ipv6, from {about.origin}"),
        (
            f"sysctl -w {dotted[0]}=0, in the pod's securityContext.sysctls, and apply the rules again",
            "or make the rules with --enable-ipv6=false; names with AAAA records then fail over to IPv4",
        ),
        None if everywhere else calls_in(about, IPV6),
    )


def taken_mark(about: Situation) -> Cause | None:
    """TPROXY's mark leads elsewhere than to lo: another program's policy rule comes first."""
    lookup, options = about.facts.lookup, about.options
    if lookup is None or not uses_tproxy(options) or not about.backends or about.missing:
        return None
    mark = options.istio_inbound_tproxy_mark
    for family in about.families:
        if family == IPV6 and not has_global(about.facts, IPV6):
            continue
        client = HOSTS[family][0]
        own = about.facts.primary(about.facts.uplink, client) or POD[family]
        answer = Packet("OUTPUT", TCP, own, client, APP_PORTS[0], CLIENT_PORT, mark=mark)
        hop = lookup.sent(answer, local_source=about.facts.is_local(own))
        if hop is None or hop.local:
            continue
        return Cause(
            "taken-mark",
            "inbound calls hang: the app's answers do not return to the sidecar",
            f"another policy rule takes packets with TPROXY's mark {mark} first",
            (f"a packet with mark {mark} goes {hop.refused or f'out by {hop.device}'}, not to lo",),
            (
                "ip rule show: put Istio's rule before the other, or narrow the other's mask",
                "or choose another mark: --istio-inbound-tproxy-mark",
            ),
            calls_in(about, family),
        )
    return None


def no_forwarding(about: Situation) -> Cause | None:
    """A virtual machine in the pod, and no forwarding."""
    machines = [name for name in about.options.kube_virt_interfaces if name != about.facts.uplink]
    path = FORWARDING[IPV4]
    if not machines or not about.backends or about.sysctls.get(path) != 0:
        return None
    return Cause(
        "no-forwarding",
        "the virtual machine's calls that are not captured get lost",
        f"forwarding is off: {path.replace('/', '.')} is 0",
        (f"-k {','.join(machines)}, from {about.origin}: UDP and excluded destinations are forwarded",),
        ("sysctl -w net.ipv4.ip_forward=1, in the pod's securityContext.sysctls",),
    )


def inner_network(about: Situation) -> Cause | None:
    """Containers or machines inside of the pod: their calls come by a bridge, and are no calls of the pod's own."""
    named = about.options.kube_virt_interfaces
    for device in about.interfaces:
        if device == about.facts.uplink or not device.startswith(INNER_BRIDGES) or device in named:
            continue
        own = next((each.network for each in about.facts.addresses if each.device == device), None)
        if own is None or not about.sysctls.get(FORWARDING[own.family]):
            continue
        return Cause(
            "inner-network",
            "calls of containers inside of the pod do not count as outbound",
            f"the pod has a network of its own, {device}: calls that come by it enter ISTIO_INBOUND",
            (f"{device} has the address {network_text(own)}, and forwarding is on",),
            (f"name the bridge as a virtual machine's: -k {device} (istio.io/reroute-virtual-interfaces)",),
        )
    return None
