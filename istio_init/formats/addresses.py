"""Addresses, networks, ports and protocols as text: the one spelling of each."""

from __future__ import annotations

from istio_init.model.rules import TCP, UDP, address_text, range_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Network, PortRange

# address_text and range_text are in model/rules.py, for the rooms below this one.
__all__ = [
    "PROTOCOLS", "address_text", "endpoint_text", "network_text", "ports_option", "ports_text", "protocol_text",
    "range_text", "short_network_text",
]  # fmt: skip

# IP protocols that iptables-save prints by name. It reads /etc/protocols, which differs from machine to
# machine and may be missing; these are the names in Debian's, for the protocols that firewalls deal with.
PROTOCOLS = {
    1: "icmp",
    2: "igmp",
    4: "ipencap",
    TCP: "tcp",
    UDP: "udp",
    33: "dccp",
    41: "ipv6",
    43: "ipv6-route",
    44: "ipv6-frag",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "ipv6-icmp",
    59: "ipv6-nonxt",
    60: "ipv6-opts",
    89: "ospf",
    103: "pim",
    108: "ipcomp",
    112: "vrrp",
    115: "l2tp",
    132: "sctp",
    135: "mobility-header",
    136: "udplite",
}


def network_text(network: Network) -> str:
    """An address and its prefix length, as glibc spells it (`::127.0.0.53/128`)."""
    return f"{address_text(network.address)}/{network.prefix}"


def short_network_text(network: Network) -> str:
    """A network; a single address without its prefix length."""
    return address_text(network.address) if network.prefix == len(network.address) * 8 else network_text(network)


def endpoint_text(address: bytes, port: int) -> str:
    """An address and a port; the address alone if the port is 0."""
    text = address_text(address)
    if not port:
        return text
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def ports_text(ports: PortRange) -> str:
    """A port, or a range of ports: LOW-HIGH."""
    return range_text(ports.low, ports.high)


def ports_option(ports: PortRange) -> str:
    """A port, or a range of ports, as the options of iptables' matches have it: LOW:HIGH."""
    return range_text(ports.low, ports.high, ":")


def protocol_text(number: int) -> str:
    """A protocol by name, or its number."""
    return PROTOCOLS.get(number, str(number))
