"""What TPROXY's rules and routes do: both addresses of an inbound connection are kept, all the way to the app."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from integration.kit.endpoints import FAMILY_NUMBERS, PATIENCE, User
from integration.kit.pod import APP, PODS, PROXY, Pod
from istio_init.model.rules import IPV4

BASE = "-p 15001 -z 15006 -u 1337 -g 1337 -m TPROXY"
ALL = f"{BASE} -i '*' -b '*'"
# As Istio's injection runs the proxy for TPROXY: rule 2 of ISTIO_OUTPUT would send uid 1337 back to 15006.
ENVOY = User(0, 1337)
MARK = 1337
ONLY_GID = User(1000, 1337)
SYN_ACK = 0x12


@pytest.fixture(params=PODS, ids="-".join)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod whose sidecar listens transparently for inbound connections."""
    with Pod(*request.param) as fresh:
        fresh.listen("inbound", 15006, transparent=True)
        for name, port in (("outbound", 15001), ("tunnel", 15008), ("app", 8080), ("app's other port", 9090)):
            fresh.listen(name, port)
        fresh.listen_at_peer("peer", 80)
        yield fresh


def test_both_addresses_are_kept(pod: Pod) -> None:
    pod.apply(ALL)
    for address in (pod.addresses.pod, pod.addresses.second_pod):
        to, source = (address, 8080), (pod.addresses.outer, 40001)
        arrival = pod.dial_in(to, source)
        assert (arrival.at, arrival.source, arrival.local, arrival.answered) == ("inbound", source, to, to)


def test_the_app_sees_the_clients_address(pod: Pod) -> None:
    """Envoy's connection to the app: from the client's address, marked; the app's answers come back to Envoy."""
    pod.apply(ALL)
    source, to = (pod.addresses.outer, 40002), (pod.addresses.pod, 8080)
    arrival = pod.dial(ENVOY, to, source, mark=MARK, transparent=True)
    assert (arrival.at, arrival.source, arrival.answered) == ("app", source, to)


def test_another_mark_and_table(pod: Pod) -> None:
    pod.apply(f"{ALL} -t 0x111 -r 7")
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound"
    source, to = (pod.addresses.outer, 40002), (pod.addresses.pod, 8080)
    arrival = pod.dial(ENVOY, to, source, mark=0x111, transparent=True)
    assert (arrival.at, arrival.source) == ("app", source)


# From the peer: options beside BASE; the address dialled; port; where it ends.
INBOUND = {
    "nothing without -b": ("", "pod", 8080, "app"),
    "all": ("-b '*'", "pod", 8080, "inbound"),
    "all, where nobody listens": ("-b '*'", "pod", 7777, "inbound"),
    "all, the tunnel port, too": ("-b '*'", "pod", 15008, "inbound"),
    "all, -d, listed": ("-b '*' -d 8081,9000-9100", "pod", 9090, "app's other port"),
    "all, -d, not listed": ("-b '*' -d 8081,9000-9100", "pod", 8080, "inbound"),
    "a list, in it": ("-b 80,8080", "pod", 8080, "inbound"),
    "a list, in its range": ("-b 80,8080-9090", "pod", 9090, "inbound"),
    "a list, not in it": ("-b 80,8080-8082", "pod", 9090, "app's other port"),
    "-c, the interface": ("-b '*' -c veth1", "second_pod", 8080, "app"),
    "-c, another one": ("-b '*' -c veth1", "pod", 8080, "inbound"),
    "1.13": ("-b '*' --compat-version 1.13", "pod", 8080, "inbound"),
}


@pytest.mark.parametrize("name", INBOUND)
def test_inbound(pod: Pod, name: str) -> None:
    arguments, to, port, ends = INBOUND[name]
    pod.apply(f"{BASE} {arguments}")
    address = (getattr(pod.addresses, to), port)
    arrival = pod.dial_in(address)
    assert (arrival.at, arrival.local) == (ends, address)


@pytest.mark.parametrize(("source", "ends"), [("outer", "app"), ("peer", "inbound")])
@pytest.mark.parametrize("more", ["", "--redirect-dns --capture-all-dns --drop-invalid --rule-comments"])
def test_inbound_from_excluded_sources(pod: Pod, source: str, ends: str, more: str) -> None:
    """Outbound connections to the same addresses are captured, and the proxy reaches them."""
    pod.apply(f"{ALL} --istio-inbound-exclude-cidr 203.0.113.0/25,203.0.113.9,2001:db8::/64 {more}")
    to = (pod.addresses.pod, 8080)
    address = getattr(pod.addresses, source)
    arrival = pod.dial_in(to, (address, 40003))
    assert (arrival.at, arrival.source, arrival.answered) == (ends, (address, 40003), to)
    assert [pod.dial(user, (address, 80)).at for user in (APP, PROXY)] == ["outbound", "peer"]


def test_outbound_is_as_ever(pod: Pod) -> None:
    pod.apply(ALL)
    to = (pod.addresses.peer, 80)
    assert pod.dial(APP, to).at == "outbound"
    assert pod.dial(PROXY, to).at == "peer"


# Connections to the pod's own address, each with the one rule of mangle that decides it: the rule; user; port; source;
# where it ends with the rule and where without it.
NOT_LOOPBACK = "! -d {loopback} -o lo -p tcp -m owner"
RULES = {
    "the proxy's group to its own pod": (
        f"OUTPUT {NOT_LOOPBACK} --gid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff",
        ONLY_GID, 8080, "", "inbound", "app",
    ),
    "the proxy's user to its own pod's tunnel port": (
        f"OUTPUT {NOT_LOOPBACK} --uid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff",
        User(1337, 1000), 15008, "", "inbound", "tunnel",
    ),
    "the proxy to its app from the passthrough address": (
        "ISTIO_INBOUND -s {passthrough} -i lo -p tcp -j RETURN", PROXY, 8080, "passthrough", "app", "inbound"
    ),
    "the app to itself": (
        "ISTIO_INBOUND -i lo -p tcp -m mark ! --mark 0x53a -j RETURN", APP, 8080, "", "app", "inbound"
    ),
    "the way in": ("ISTIO_INBOUND -p tcp -j ISTIO_TPROXY", ONLY_GID, 8080, "", "inbound", "app"),
    "the way into the way in": ("PREROUTING -p tcp -j ISTIO_INBOUND", ONLY_GID, 8080, "", "inbound", "app"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_mangle_rule(pod: Pod, name: str) -> None:
    rule, user, port, named, ends, without = RULES[name]
    pod.apply(ALL)
    to = (pod.addresses.pod, port)
    source = (getattr(pod.addresses, named), 0) if named else None
    assert pod.dial(user, to, source).at == ends
    bits = 32 if pod.family == IPV4 else 128
    hosts = {field: f"{address}/{bits}" for field, address in pod.addresses._asdict().items()}
    pod.delete("mangle", rule.format(**hosts))
    assert pod.dial(user, to, source).at == without


def test_a_rule_for_lo_is_not_for_other_interfaces(pod: Pod) -> None:
    """`-i lo ! --mark 0x53a RETURN` must let nothing pass that comes in by veth0, which a wrong mask takes for lo."""
    pod.apply(ALL)
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound"
    pod.insert("mangle", "ISTIO_INBOUND -i veth0 -p tcp -m mark ! --mark 0x53a -j RETURN")
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "app"


@pytest.mark.parametrize(
    "part", ["leave the mark", "save the mark", "restore the mark", "the policy rule", "the route"]
)
def test_each_part_of_the_way_back(pod: Pod, part: str) -> None:
    """Without it the answer to a connection in a client's name leaves the pod instead of reaching Envoy."""
    pod.apply(ALL)
    flag = "-4" if pod.family == IPV4 else "-6"
    match part:
        case "leave the mark":
            pod.delete("mangle", "OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN")
        case "save the mark":
            save = "CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"
            pod.delete("mangle", f"PREROUTING -p tcp -m mark --mark 0x539 -j {save}")
        case "restore the mark":
            restore = "CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
            pod.delete("mangle", f"OUTPUT -p tcp -m connmark --mark 0x539 -j {restore}")
        case "the policy rule":
            pod.namespace.run("ip", flag, "rule", "del", "fwmark", "1337", "lookup", "133")
        case "the route":
            pod.namespace.run("ip", flag, "route", "del", "local", "default", "dev", "lo", "table", "133")
    with (
        pod.peer.inside(lambda: socket.socket(FAMILY_NUMBERS[pod.family], socket.SOCK_RAW, socket.IPPROTO_TCP)) as wire,
        pod.client(ENVOY, (pod.addresses.outer, 40005), mark=MARK, transparent=True) as envoy,
    ):
        wire.settimeout(PATIENCE)
        envoy.setblocking(False)
        envoy.connect_ex((pod.addresses.pod, 8080))
        assert answers(wire, 40005)


def answers(wire: socket.socket, port: int) -> bool:
    """Whether a SYN-ACK to this port has come out of the pod; TimeoutError where nothing comes."""
    while True:
        packet = wire.recv(2048)
        header = packet[(packet[0] & 15) * 4 :] if wire.family == socket.AF_INET else packet
        (to,) = struct.unpack_from("!H", header, 2)
        if to == port:
            return header[13] == SYN_ACK
