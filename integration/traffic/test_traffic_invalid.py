"""--drop-invalid: what conntrack can't place is dropped instead of being answered with a reset."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from integration.kit.endpoints import FAMILY_NUMBERS, awaited
from integration.kit.pod import PODS, Pod
from istio_init.model.rules import IPV4, IPV6

SYN_ACK = 0x12
IPV6_CHECKSUM = 7  # <linux/in6.h>


@pytest.fixture(params=PODS, ids="-".join)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod whose app listens."""
    with Pod(*request.param) as fresh:
        fresh.listen("app", 8080)
        fresh.listen("inbound", 15006)
        yield fresh


def send_stray_answer(pod: Pod) -> None:
    """An answer to a SYN that nobody sent, from the peer: no state of conntrack's starts with it."""
    fields = [40000, 8080, 1, 1, 5 << 4, SYN_ACK, 1024]
    if pod.family == IPV4:
        addresses = socket.inet_aton(pod.addresses.peer) + socket.inet_aton(pod.addresses.pod)
        pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
        words = struct.unpack("!16H", pseudo + struct.pack("!HHIIBBHHH", *fields, 0, 0))
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~(total + (total >> 16)) & 0xFFFF
    else:
        checksum = 0  # the kernel fills it in
    sock = pod.peer.inside(lambda: socket.socket(FAMILY_NUMBERS[pod.family], socket.SOCK_RAW, socket.IPPROTO_TCP))
    with sock:
        if pod.family == IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, 16)
        sock.sendto(struct.pack("!HHIIBBHHH", *fields, checksum, 0), (pod.addresses.pod, 0))


def resets_sent(pod: Pod) -> int:
    """How many resets the pod has sent (RFC 1213's tcpOutRsts, both families)."""
    names, numbers = (line.split() for line in pod.namespace.run("grep", "^Tcp:", "/proc/net/snmp").splitlines())
    return int(dict(zip(names, numbers, strict=True))["OutRsts"])


def test_an_invalid_packet_is_dropped(pod: Pod) -> None:
    pod.apply("-b '*' --drop-invalid")
    send_stray_answer(pod)
    awaited(lambda: pod.counted("mangle", "ISTIO_DROP") == [1], "the packet to be dropped")
    assert resets_sent(pod) == 0
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound"
    assert pod.counted("mangle", "ISTIO_DROP") == [1]


def test_without_the_rule_it_is_answered(pod: Pod) -> None:
    pod.apply("-b '*' --drop-invalid")
    pod.delete("mangle", "PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP")
    send_stray_answer(pod)
    awaited(lambda: resets_sent(pod) == 1, "the reset")
    assert pod.counted("mangle", "ISTIO_DROP") == [0]
