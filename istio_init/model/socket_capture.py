"""What capture by eBPF is told of one pod, as a value: no rules, but the questions that the rules ask of a socket."""

from __future__ import annotations

from istio_init.model.rules import Network
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.rules import PortRange

    # Everything, a list, or nothing.
    Scope: TypeAlias = Literal["all", "list", "none"]


class SocketCapture(Record):
    """A pod's options with its addresses. Ports are in host order; ids are as the pod's own user namespace counts them.

    `inbound_ports` are left alone where `inbound` is all, and are those that are captured where it is list.
    `outbound_ports` are captured whatever their destination; `groups` restrict
    capture to processes of these groups; None is no restriction.
    `dns` is which servers' queries go to `dns_port`. `loopback_captured`: the desired networks name a loopback range.
    """

    addresses: tuple[Network, ...]
    uids: tuple[int, ...] = (1337,)
    gids: tuple[int, ...] = (1337,)
    outbound_port: int = 15001
    inbound_port: int = 15006
    tunnel_port: int = 15008
    dns_port: int = 15053
    inbound: Scope = "none"
    inbound_ports: tuple[PortRange, ...] = ()
    outbound: Scope = "none"
    outbound_networks: tuple[Network, ...] = ()
    excluded_networks: tuple[Network, ...] = ()
    outbound_ports: tuple[PortRange, ...] = ()
    excluded_ports: tuple[PortRange, ...] = ()
    groups: tuple[int, ...] | None = None
    excluded_groups: tuple[int, ...] = ()
    dns: Scope = "none"
    dns_servers: tuple[Network, ...] = ()
    loopback: Network = Network(b"\x7f\0\0\1", 32)
    loopback_captured: bool = False
    ipv6: bool = False
    tproxy: bool = False
    mark: int = 1337
