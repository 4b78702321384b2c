"""IP sets as `ipset save` prints them, and which packets are in them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from istio_init.formats.ip_sets import ip_sets
from istio_init.model.ip_sets import SetMember
from istio_init.model.packet import Packet
from istio_init.model.rules import TCP, UDP

SAVED = """\
create nets hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1
add nets 10.0.0.0/8
add nets 10.1.0.0/16 nomatch
add nets 10.1.1.0/24 timeout 5
create ports bitmap:port range 0-1023
add ports 80
add ports 443
create pairs hash:ip,port family inet6
add pairs 2001:db8::1,tcp:80
add pairs 2001:db8::1,udp:53-54 comment "a b"
create masked hash:ip family inet netmask 24
add masked 192.0.2.0
create ranges bitmap:ip range 10.0.0.0/16
add ranges 10.0.0.3-10.0.0.9
create marks hash:ip,mark family inet
add marks 10.0.0.1,0x00000007
create devices hash:net,iface family inet
add devices 10.0.0.0/8,eth0
create macs hash:ip,mac
add macs 10.0.0.1,00:11:22:33:44:55
create odd hash:ip,port
add odd nonsense
create lists list:set size 8
add lists ports
add lists nets
"""
SETS = ip_sets(SAVED)


def packet(to: str, port: int = 80, protocol: int = TCP, mark: int = 0) -> Packet:
    source = "2001:db8::9" if ":" in to else "192.0.2.9"
    return Packet(
        "OUTPUT", protocol, ip_address(source).packed, ip_address(to).packed, 40000, port,
        out_interface="eth0", mark=mark,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sides", "packet", "held"),
    [
        ("nets", "dst", packet("10.9.0.1"), True), ("nets", "dst", packet("10.1.9.1"), False),
        ("nets", "dst", packet("10.1.1.1"), True), ("nets", "src", packet("10.9.0.1"), False),
        ("nets", "dst", packet("2001:db8::1"), False), ("nets", "", packet("10.9.0.1"), False),
        ("ports", "dst", packet("10.9.0.1", 443), True), ("ports", "dst", packet("2001:db8::1", 443, UDP), True),
        ("ports", "src", packet("10.9.0.1", 443), False), ("ports", "dst", packet("10.9.0.1", 443, 1), None),
        ("pairs", "dst,dst", packet("2001:db8::1"), True), ("pairs", "dst,dst", packet("2001:db8::1", 54, UDP), True),
        ("pairs", "dst,dst", packet("2001:db8::1", 54), False), ("pairs", "dst", packet("2001:db8::1"), False),
        ("masked", "dst", packet("192.0.2.77"), True), ("masked", "dst", packet("192.0.3.1"), False),
        ("ranges", "dst", packet("10.0.0.9"), True), ("ranges", "dst", packet("10.0.0.10"), False),
        ("marks", "dst,dst", packet("10.0.0.1", mark=7), True), ("marks", "dst,dst", packet("10.0.0.1"), False),
        ("devices", "dst,dst", packet("10.0.0.1"), True), ("devices", "dst,src", packet("10.0.0.1"), False),
        ("macs", "dst,src", packet("10.0.0.1"), None), ("macs", "dst,src", packet("10.0.0.2"), False),
        ("odd", "dst,dst", packet("10.0.0.2"), None), ("gone", "dst", packet("10.0.0.2"), None),
        ("lists", "dst", packet("10.1.1.1", 9), True), ("lists", "dst", packet("10.1.9.1", 9), False),
        ("lists", "dst", packet("10.1.9.1", 443), True),
    ],
)  # fmt: skip
def test_membership(name: str, sides: str, packet: Packet, held: bool | None) -> None:
    words = tuple(each for each in sides.split(",") if each)
    assert SetMember(name, words, SETS).holds(packet) is held
    assert SetMember(name, words, SETS, negated=True).holds(packet) is (None if held is None else not held)
