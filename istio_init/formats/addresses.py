"""Addresses, endpoints and protocols as people write them."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop

from istio_init.formats.iptables_save import PROTOCOLS


def address_text(address: bytes) -> str:
    """A packed address as people write it."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def endpoint_text(address: bytes, port: int) -> str:
    """An address and a port; the address alone where there is no port."""
    text = address_text(address)
    if not port:
        return text
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def protocol_text(number: int) -> str:
    """A protocol by name, or its number."""
    return PROTOCOLS.get(number, str(number))
