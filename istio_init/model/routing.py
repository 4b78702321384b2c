"""Policy rules, routes and addresses as values. Nothing here does I/O."""

from __future__ import annotations

from istio_init import errors
from istio_init.model.rules import address_text
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.rules import Family, Network

    Verb: TypeAlias = Literal["add", "del"]

# ip(8)'s flag for each family.
FLAGS: dict[Family, str] = {"ipv4": "-4", "ipv6": "-6"}


class PolicyRule(Record):
    """`ip rule add fwmark MARK lookup TABLE`: packets with this mark (all 32 bits) are routed by that table."""

    family: Family
    mark: int
    table: int


class Route(Record):
    """`ip route add local default dev DEV table TABLE`: all destinations count as local (RTN_LOCAL, scope host)."""

    family: Family
    device: str
    table: int


class Address(Record):
    """`ip addr add ADDRESS dev DEV`: the network's address, with its prefix, on the interface."""

    network: Network
    device: str


if TYPE_CHECKING:
    RoutingEntry: TypeAlias = PolicyRule | Route | Address


def command(entry: RoutingEntry, verb: Verb = "add") -> str:
    """The ip(8) command that adds or deletes the entry, ready to run."""
    match entry:
        case PolicyRule(family, mark, table):
            # Without a mask, 0 would mean any mark.
            fwmark = mark or "0/0xffffffff"
            return f"ip {FLAGS[family]} rule {verb} fwmark {fwmark} lookup {table}"
        case Route(family, device, table):
            return f"ip {FLAGS[family]} route {verb} local default dev {device} table {table}"
        case Address(network, device):
            address = f"{address_text(network.address)}/{network.prefix}"
            return f"ip {FLAGS[network.family]} addr {verb} {address} dev {device}"
        case _:
            errors.assert_never(entry)
