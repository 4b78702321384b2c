"""Capture by eBPF of every kind of TCP socket, and of addresses that came later or are not the sender's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from operator import methodcaller
from typing import TYPE_CHECKING

import pytest

from integration.kit.ebpf_node import EbpfNode
from integration.kit.ebpf_pod import EbpfPod
from integration.kit.endpoints import (
    FAMILY_NUMBERS,
    PATIENCE,
    ROOT,
    awaited,
    original_destination,
    used,
)
from integration.kit.pod import APP, HOST_BITS, PEER_MAC, POD_MAC
from integration.kit.raw_packets import Sender
from integration.traffic.test_traffic import ALL
from istio_init.model.packet import Packet
from istio_init.model.rules import FAMILIES, IPV4, TCP

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.kit.endpoints import Address
    from istio_init.model.rules import Family

BOTH_FAMILIES = pytest.mark.parametrize("family", FAMILIES)
# <linux/tcp.h>, <linux/in.h>
MSG_FASTOPEN, TCP_FASTOPEN, IPPROTO_MPTCP = 0x20000000, 23, 262
# Client and server, without a cookie on either side (Documentation/networking/ip-sysctl.rst).
FAST_OPEN = 0x1 | 0x2 | 0x4 | 0x200


@pytest.fixture
def pod(node: EbpfNode, family: Family) -> Iterator[EbpfPod]:
    """A captured pod with a proxy that accepts data with a SYN."""
    with EbpfPod(family, node) as fresh:
        fresh.namespace.run("sysctl", "-q", "-w", f"net.ipv4.tcp_fastopen={FAST_OPEN}", "net.ipv4.tcp_syncookies=2")
        for name, port in ("outbound", 15001), ("inbound", 15006), ("app", 8080):
            fresh.listen(name, port)
        fresh.listen_at_peer("peer", 80)
        fresh.apply(ALL)
        for name in "outbound", "inbound":
            fresh.listeners[name].setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
            fresh.listeners[name].settimeout(PATIENCE)
        yield fresh


def destination(pod: EbpfPod, name: str) -> Address:
    """What the proxy is told of the next connection that it accepts."""
    accepted, _ = pod.listeners[name].accept()
    with accepted:
        return original_destination(accepted)


def begun(call: Callable[[socket.socket], object]) -> Callable[[socket.socket], int]:
    """The call, on a socket that waits."""

    def work(client: socket.socket) -> int:
        client.settimeout(PATIENCE)
        call(client)
        return 0

    return work


@BOTH_FAMILIES
def test_kinds_of_sockets(pod: EbpfPod) -> None:
    to = (pod.addresses.peer, 80)

    def fast(client: socket.socket) -> None:
        client.sendto(b"?", MSG_FASTOPEN, to)

    def by_device(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"veth0")
        client.connect(to)

    def by_address(client: socket.socket) -> None:
        client.bind((pod.addresses.second_pod, 0))
        client.connect(to)

    for user, call in (APP, fast), (ROOT, by_device), (APP, by_address):
        client, _ = used(pod.namespace, pod.family, socket.SOCK_STREAM, user, begun(call))
        with client:
            assert client.getpeername()[:2] == to, call
            assert destination(pod, "outbound") == to, call


@BOTH_FAMILIES
def test_multipath_tcp(pod: EbpfPod) -> None:
    """The kernel answers getpeername of such a socket by itself, with the proxy's address."""
    to = (pod.addresses.peer, 80)

    def dial() -> Address:
        with socket.socket(FAMILY_NUMBERS[pod.family], socket.SOCK_STREAM, IPPROTO_MPTCP) as client:
            client.settimeout(PATIENCE)
            client.connect(to)
            host, port = client.getpeername()[:2]
            return host, port

    assert pod.namespace.inside(dial) == (pod.addresses.loopback, 15001)
    assert destination(pod, "outbound") == to


@BOTH_FAMILIES
def test_connections_from_outside_with_data_or_cookies(pod: EbpfPod) -> None:
    """Every SYN is answered with a cookie, but those that bring data."""
    pod.peer.run("sysctl", "-q", "-w", f"net.ipv4.tcp_fastopen={FAST_OPEN}")
    to = (pod.addresses.pod, 8080)
    for call in (lambda client: client.connect(to)), (lambda client: client.sendto(b"?", MSG_FASTOPEN, to)):
        client, _ = used(pod.peer, pod.family, socket.SOCK_STREAM, ROOT, begun(call))
        with client:
            assert destination(pod, "inbound") == to


@pytest.mark.parametrize("family", [IPV4])
def test_a_socket_of_ipv6_that_calls_ipv4(pod: EbpfPod) -> None:
    def dial() -> Address:
        with socket.socket(socket.AF_INET6) as client:
            client.settimeout(PATIENCE)
            client.connect((f"::ffff:{pod.addresses.peer}", 80))
            host, port = client.getpeername()[:2]
            return host, port

    assert pod.namespace.inside(dial) == (f"::ffff:{pod.addresses.peer}", 80)
    assert destination(pod, "outbound") == (pod.addresses.peer, 80)


@BOTH_FAMILIES
def test_a_proxy_whose_listeners_take_both_families(node: EbpfNode, family: Family) -> None:
    with EbpfPod(family, node, ALL) as pod, contextlib.ExitStack() as stack:
        pod.listen("app", 8080)
        pod.listen_at_peer("peer", 80)
        for name, port in ("outbound", 15001), ("inbound", 15006):
            sock = stack.enter_context(pod.namespace.inside(lambda: socket.socket(socket.AF_INET6)))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", port))
            sock.listen()
            sock.settimeout(PATIENCE)
            pod.listeners[name] = sock
        calls = {
            "outbound": ((pod.addresses.peer, 80), pod.namespace),
            "inbound": ((pod.addresses.pod, 8080), pod.peer),
        }
        for name, (to, at) in calls.items():
            client, _ = used(at, family, socket.SOCK_STREAM, ROOT, begun(methodcaller("connect", to)))
            with client:
                accepted, _ = pod.listeners[name].accept()
                with accepted:
                    assert original_destination(accepted, family) == to


@BOTH_FAMILIES
def test_an_address_that_comes_after_add(pod: EbpfPod) -> None:
    """The kernel's programs do not know that it is the pod's own until the next ADD."""
    later, version = ("10.77.0.50", "-4") if pod.family == IPV4 else ("fd77::50", "-6")
    nodad = [] if pod.family == IPV4 else ["nodad"]
    pod.namespace.run("ip", version, "addr", "add", f"{later}/{HOST_BITS[pod.family]}", "dev", "veth0", *nodad)
    pod.peer.run("ip", version, "neigh", "add", later, "lladdr", POD_MAC, "dev", "veth0", "nud", "permanent")
    arrival = pod.dial_in((later, 8080))
    assert (arrival.at, arrival.original) == ("inbound", (later, 8080))
    arrival = pod.dial(APP, (pod.addresses.peer, 80), (later, 0))
    assert (arrival.at, arrival.original, arrival.source and arrival.source[0]) == (
        "outbound", (pod.addresses.peer, 80), later,
    )  # fmt: skip
    arrival = pod.dial(APP, (later, 8080))
    assert (arrival.at, arrival.original) == ("outbound", (later, 8080))
    pod.apply(ALL)
    assert pod.dial(APP, (later, 8080)).at == "app"


@BOTH_FAMILIES
def test_packets_from_outside_in_the_pods_own_name_reach_nobody(pod: EbpfPod) -> None:
    """Capture takes such a source for the pod itself; the kernel drops it before, whatever the program says."""
    pod.namespace.run(
        *("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.veth0.rp_filter=0"),
        "net.ipv4.tcp_syncookies=1",
    )
    number = FAMILY_NUMBERS[pod.family]

    def send(*sources: str) -> None:
        sender = Sender()
        sender.open_wire("veth0", pod.family)
        for port, source in enumerate(sources, 41000):
            ends = socket.inet_pton(number, source), socket.inet_pton(number, pod.addresses.pod)
            sender.put(Packet("PREROUTING", TCP, *ends, port, 8080, "veth0"), "veth0", POD_MAC, PEER_MAC)
        sender.close()

    pod.peer.inside(lambda: send(pod.addresses.pod, pod.addresses.second_pod, pod.addresses.loopback))
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound"
    assert half_open(pod) == 0
    # Of a host that does not answer.
    pod.peer.inside(lambda: send("10.77.0.99" if pod.family == IPV4 else "fd77::99"))
    awaited(lambda: half_open(pod) == 1, "the handshake to begin")


def half_open(pod: EbpfPod) -> int:
    """Connections of the pod that wait for the third packet of their handshake."""
    lines = pod.namespace.run("cat", "/proc/net/tcp" if pod.family == IPV4 else "/proc/net/tcp6").splitlines()[1:]
    return sum(line.split()[3] == "03" for line in lines)
