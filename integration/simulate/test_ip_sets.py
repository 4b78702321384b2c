"""IP sets: their members as the kernel has them, and what rules with `-m set` do to a packet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pyroute2.ipset import IPSet, PortEntry

from integration.kit.asking import ask
from integration.kit.namespace import Namespace
from integration.kit.program import succeed
from istio_init.formats.ip_sets import ip_sets
from istio_init.kernel.netlink.ip_sets import saved_sets
from istio_init.model.ip_sets import SetMember
from istio_init.model.packet import Packet
from istio_init.model.rules import TCP, UDP

# Of each type: its options, its members as pyroute2 names them, and what `ipset save` calls them.
SETS: dict[str, tuple[dict[str, Any], list[tuple[Any, str, dict[str, Any]]]]] = {
    "hash:ip": ({}, [("192.0.2.1", "ip", {}), ("10.1.1.5", "ip", {})]),
    "hash:net": ({}, [("10.0.0.0/12", "net", {}), ("10.1.1.0/24", "net", {}), ("10.9.0.0/16", "net", {})]),
    "hash:ip,port": (
        {},
        [
            (("192.0.2.1", PortEntry(80, protocol=TCP)), "ip,port", {}),
            (("10.1.1.5", PortEntry(53, protocol=UDP)), "ip,port", {}),
        ],
    ),
    "hash:net,port": ({}, [(("10.0.0.0/8", PortEntry(443, protocol=TCP)), "net,port", {})]),
    "hash:ip,port,net": (
        {},
        [(("10.1.1.5", PortEntry(80, protocol=TCP), "192.0.2.0/24"), "ip,port,net", {})],
    ),
    "hash:ip,port,ip": ({}, [(("10.1.1.5", PortEntry(80, protocol=TCP), "192.0.2.1"), "ip,port,ip", {})]),
    "bitmap:port": ({"bitmap_ports_range": (1, 1000)}, [(PortEntry(53), "port", {}), (PortEntry(80), "port", {})]),
    "hash:ip (IPv6)": ({"family": 10}, [("2001:db8::1", "ip", {})]),
    "hash:net (IPv6)": ({"family": 10}, [("2001:db8::/32", "net", {})]),
}


def name_of(kind: str) -> str:
    return "s-" + kind.replace(":", "-").replace(",", "-").replace(" (IPv6)", "6")


def make() -> None:
    with IPSet() as sets:
        for kind, (options, members) in SETS.items():
            sets.create(name_of(kind), stype=kind.split()[0], **options)
            for entry, etype, more in members:
                family = options.get("family", 2)
                sets.add(name_of(kind), entry, etype=etype, family=family, **more)
        sets.create("elsewhere", stype="hash:net")
        sets.add("elsewhere", "203.0.113.0/24", etype="net")
        sets.create("all-of-it", stype="list:set")
        for kind in ("hash:ip", "hash:net"):
            sets.add("all-of-it", name_of(kind), etype="set")


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    with Namespace() as pod:
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        for words in ("link set eth0 up", "link set eth1 up", "addr add 10.1.1.5/24 dev eth0"):
            pod.run("ip", *words.split())
        pod.run("ip", "route", "add", "default", "via", "10.1.1.1")
        pod.inside(make)
        yield pod


def test_they_are_read_as_they_were_made(pod: Namespace) -> None:
    text = pod.inside(saved_sets)
    assert "add s-hash-net 10.9.0.0/16\n" in text
    assert "add s-hash-ip-port 10.1.1.5,udp:53\n" in text
    assert "add s-hash-ip-port-net 10.1.1.5,tcp:80,192.0.2.0/24\n" in text
    assert "create s-bitmap-port bitmap:port\nadd s-bitmap-port 53\nadd s-bitmap-port 80\n" in text
    assert "create s-hash-ip6 hash:ip family inet6\nadd s-hash-ip6 2001:db8::1\n" in text
    assert text.endswith("create all-of-it list:set\nadd all-of-it s-hash-ip\nadd all-of-it s-hash-net\n")
    assert {each.name for each in ip_sets(text)} == {*map(name_of, SETS), "all-of-it", "elsewhere"}


ADDRESSES = ("192.0.2.1", "192.0.2.9", "10.1.1.5", "10.1.2.5", "10.9.0.1", "2001:db8::1", "2001:db8:1::1", "fd00::1")


@pytest.mark.parametrize("kind", SETS)
def test_each_packet_is_where_the_kernel_finds_it(pod: Namespace, kind: str) -> None:
    """The kernel's own test (IPSET_CMD_TEST) says the same of every packet."""
    sets = ip_sets(pod.inside(saved_sets))
    family = SETS[kind][0].get("family", 2)
    etype = SETS[kind][1][0][1]
    dimensions = etype.split(",")
    observed = set()
    some = [each for each in ADDRESSES if (":" in each) == (family == 10)]
    for first, second, port, protocol in itertools.product(some, some, (80, 53, 443), (TCP, UDP)):
        addresses = iter((first, second))
        ported = PortEntry(port) if kind == "bitmap:port" else PortEntry(port, protocol=protocol)
        entry = [ported if each == "port" else next(addresses) for each in dimensions]
        request = entry[0] if len(entry) == 1 else tuple(entry)

        def test(request: Any = request) -> bool:  # noqa: ANN401 (pyroute2's)
            with IPSet() as testing:
                return bool(testing.test(name_of(kind), request, etype=etype, family=family))

        packet = Packet("OUTPUT", protocol, packed(first), packed(second), 40000, port)
        sides = ("dst",) if kind == "bitmap:port" else ("src", "dst", "dst")[: len(dimensions)]
        actual = SetMember(name_of(kind), sides, sets).holds(packet)
        assert actual is pod.inside(test), (request, packet)
        observed.add(actual)
    assert True in observed


def packed(text: str) -> bytes:
    return ip_address(text).packed


def explained(pod: Namespace, *words: str) -> str:
    return ask(pod, "explain", "-i", "*", "-b", "*", *words).output.splitlines()[0]


@pytest.mark.parametrize("backend", ["legacy", "nft"])
@pytest.mark.parametrize(
    ("options", "to", "captured"),
    [
        ("--match-set s-hash-net dst", "10.9.0.1", False), ("--match-set s-hash-net dst", "10.99.2.5", True),
        ("! --match-set s-hash-net dst", "10.9.0.1", True), ("--match-set s-hash-ip dst", "192.0.2.1", False),
        ("--match-set s-hash-ip dst", "192.0.2.9", True), ("--match-set all-of-it dst", "10.9.0.1", False),
        ("--match-set s-hash-ip-port dst,dst", "192.0.2.1", False),
        ("--match-set s-hash-ip-port dst", "192.0.2.1", True),
    ],
)  # fmt: skip
def test_explain_knows_the_members(pod: Namespace, backend: str, options: str, to: str, captured: bool) -> None:
    flags = ("--force-iptables-binary", backend)
    succeed(pod, "-i", "*", "-b", "*", *flags)
    rule = ("OUTPUT", "-p", "tcp", "-m", "set", *options.split(), "-j", "ACCEPT")
    pod.run(f"iptables-{backend}", "-t", "nat", "-I", *rule)
    try:
        verdict = explained(pod, "--live", *flags, "--outbound", "--to", f"{to}:80", "--uid", "1000")
    finally:
        pod.run(f"iptables-{backend}", "-t", "nat", "-D", *rule)
        succeed(pod, "--cleanup-only")
    assert verdict.startswith("Verdict: captured" if captured else "Verdict: not captured"), verdict


DUMP = """\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A OUTPUT -p tcp -m set --match-set blocked dst -j ACCEPT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""
MEMBERS = "create blocked hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12\nadd blocked 203.0.113.0/24\n"


@pytest.mark.parametrize(
    ("text", "to", "verdict"),
    [
        (MEMBERS + DUMP, "203.0.113.9", "not captured"), (DUMP + MEMBERS, "203.0.114.9", "captured"),
        (DUMP, "203.0.113.9", "undecided"), (DUMP, "203.0.114.9", "undecided"),
    ],
)  # fmt: skip
def test_a_dump_may_have_them(pod: Namespace, tmp_path: Path, text: str, to: str, verdict: str) -> None:
    file = tmp_path / "dump"
    file.write_text(text)
    assert explained(pod, "--from-save", str(file), "--outbound", "--to", f"{to}:80", "--uid", "1000").startswith(
        f"Verdict: {verdict}"
    )


@pytest.mark.parametrize(
    ("name", "sides", "sound"),
    [
        ("elsewhere", "dst", True), ("s-hash-net", "dst", False), ("s-hash-ip-port-net", "src,dst,dst", True),
        ("s-hash-net-port", "dst,dst", False), ("s-hash-net-port", "dst,src", False), ("s-bitmap-port", "src", False),
    ],
)  # fmt: skip
def test_prove_tells_a_set_that_takes_traffic_away(pod: Namespace, name: str, sides: str, sound: bool) -> None:
    """Of a set of several fields as well; no packet is undecided."""
    flags = ("-i", "10.0.0.0/8", "-b", "*")
    succeed(pod, *flags)
    rule = ("OUTPUT", "-p", "tcp", "-m", "set", "--match-set", name, sides, "-j", "ACCEPT")
    pod.run("iptables-legacy", "-t", "nat", "-I", *rule)
    try:
        proof = ask(pod, "prove", "--live", *flags)
    finally:
        succeed(pod, "--cleanup-only")
        pod.run("iptables-legacy", "-t", "nat", "-D", *rule)
    assert (proof.code == 0) is sound, proof.output
    assert "undecided" not in proof.output
