"""Capture by eBPF of one pod to the options that ask for it: the inverse of socket_capture.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model import parsers
from istio_init.options.table import Options

if TYPE_CHECKING:
    from istio_init.model.rules import PortRange
    from istio_init.model.socket_capture import SocketCapture


def options_of(capture: SocketCapture) -> Options:
    """Options whose capture this is."""
    inbound: tuple[PortRange, ...] | parsers.Everything = capture.inbound_ports
    if capture.inbound != "list":
        inbound = parsers.ALL if capture.inbound == "all" else ()
    every_group = capture.groups is None
    return Options(
        capture_backend="ebpf",
        proxy_uid=capture.uids,
        proxy_gid=() if capture.gids == capture.uids else capture.gids,
        envoy_port=capture.outbound_port,
        inbound_capture_port=capture.inbound_port,
        inbound_tunnel_port=capture.tunnel_port,
        istio_inbound_ports=inbound,
        istio_local_exclude_ports=capture.inbound_ports if capture.inbound == "all" else (),
        istio_service_cidr=parsers.ALL if capture.outbound == "all" else capture.outbound_networks,
        istio_service_exclude_cidr=capture.excluded_networks,
        istio_outbound_ports=capture.outbound_ports,
        istio_local_outbound_ports_exclude=capture.excluded_ports,
        istio_outbound_owner_groups=parsers.ALL if every_group else capture.groups or (),
        istio_outbound_owner_groups_exclude=capture.excluded_groups if every_group else (),
        redirect_dns=capture.dns != "none",
        capture_all_dns=capture.dns == "all",
        dns_servers=capture.dns_servers or None,
        istio_outbound_ipv4_loopback_cidr=capture.loopback,
        enable_ipv6=capture.ipv6,
        istio_inbound_interception_mode="TPROXY" if capture.tproxy else "REDIRECT",
        istio_inbound_tproxy_mark=capture.mark,
    )
