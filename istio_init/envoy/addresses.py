"""Addresses and networks as Envoy's configuration writes them."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_pton

from istio_init.model.parsers import masked
from istio_init.model.rules import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.node import Node

ANY = (bytes(4), bytes(16))


def packed(text: str) -> bytes | None:
    """An IP address from text as bytes; None for a name or anything else."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return None


def network(node: Node) -> Network:
    """The network of a CidrRange. DumpError if it is invalid. Host bits are ignored (CidrRange::create)."""
    address = packed(node.get("address_prefix").text())
    if address is None:
        raise node.get("address_prefix").wrong("an IP address")
    prefix = node.get("prefix_len").number()
    if not 0 <= prefix <= len(address) * 8:
        raise node.get("prefix_len").wrong("a prefix' length")
    return Network(masked(address, prefix), prefix)
