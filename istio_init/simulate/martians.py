"""Martians: incoming packets that the kernel drops whatever the rules (RFC 1812, section 5.3.7). Pure.

In the kernel: IPv4 in ip_route_input_slow and fib_validate_source (net/ipv4/route.c,
fib_frontend.c), after PREROUTING; IPv6 in ip6_rcv_core (net/ipv6/ip6_input.c), before any rule. IPv6 accepts the
machine's own address as a source. Reverse path filtering (rp_filter) is assumed to be off.
"""

from __future__ import annotations

from istio_init.formats.addresses import address_text
from istio_init.model.packet import LOOPBACKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.packet import Facts, Packet


def at_the_door(packet: Packet) -> str:
    """Why the kernel drops an incoming packet before PREROUTING; empty if it does not."""
    if packet.family == "ipv4":
        return ""
    for side, address in (("source", packet.source), ("destination", packet.destination)):
        if address == LOOPBACKS["ipv6"]:
            return f"its {side}, ::1, is the loopback address, and it comes by {packet.in_interface}"
    if packet.source[0] == 0xFF:
        return f"its source, {address_text(packet.source)}, is a multicast address"
    return ""


def by_routing(packet: Packet, facts: Facts) -> str:
    """Why routing drops an incoming packet after PREROUTING; empty if it does not."""
    if packet.family == "ipv6":
        return ""
    source, interface = packet.source, packet.in_interface
    if source[0] in {0, *range(0xE0, 0xF0)} or source == b"\xff" * 4:
        return f"its source, {address_text(source)}, is not a host address (a martian source)"
    if packet.destination[0] == 0:
        return f"its destination, {address_text(packet.destination)}, is not a host address (a martian destination)"
    for side, address in (("source", source), ("destination", packet.destination)):
        if address[0] == 127 and interface not in facts.route_localnet:
            text = f"its {side}, {address_text(address)}, is a loopback address"
            return f"{text} (a martian {side}: net.ipv4.conf.{interface}.route_localnet is 0)"
    if facts.is_local(source) and interface not in facts.accept_local:
        text = f"its source, {address_text(source)}, is this machine's own"
        return f"{text} (a martian source: net.ipv4.conf.{interface}.accept_local is 0)"
    return ""
