"""What REDIRECT's rules do to real connections: each rule with it and without it, inbound, outbound, exclusions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest

from integration.kit.endpoints import User
from integration.kit.pod import ADDRESSES, APP, PODS, PROXY, Pod
from istio_init.model.rules import IPV4, IPV6

if TYPE_CHECKING:
    from istio_init.model.rules import Family

BASE = "-p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT"
ALL = f"{BASE} -i '*' -b '*'"
# One of the proxy's identities without the other.
ONLY_UID, ONLY_GID = User(1337, 1000), User(1000, 1337)


@pytest.fixture(params=PODS, ids="-".join)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod whose sidecar, app and tunnel listen, and a peer with servers on the ports 53, 80, 443 and 8080."""
    with Pod(*request.param) as fresh:
        fresh.listen_everywhere()
        yield fresh


class Row(NamedTuple):
    """One rule of ISTIO_OUTPUT and a connection that it decides.

    `to` and `source` are fields of pod.Addresses. `without` is where the same connection ends once the rule is
    taken out. `shadows` are rules that decide it first and must be gone for the rule to be seen.
    """

    rule: str
    user: User
    to: str
    port: int
    ends: str
    without: str
    source: str = ""
    options: str = ALL
    shadows: tuple[str, ...] = ()


BY_LO_NOT_UID = "-o lo -m owner ! --uid-owner 1337 -j RETURN"
DNS = f"{ALL} --redirect-dns --dns-servers 10.99.0.1,fd99::1"
LOOPBACK_IN = f"{BASE} -b '*' -i 10.0.0.0/8,127.0.0.0/8,fd00::/8,::/64"

# The article's nine rules, numbered as there. With all nine in place 5, 6 and 8 decide nothing: rules 2 to 4 have
# taken everything that leaves by lo. They do where rule 3 is narrowed by DNS capture or left out by -i.
RULES = {
    "1: the proxy to its own app": Row(
        "-s {passthrough} -o lo -j RETURN", PROXY, "pod", 8080, "app", "inbound", source="passthrough"
    ),
    "2: the proxy to a service in its own pod": Row(
        "! -d {loopback} -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT",
        ONLY_UID, "pod", 8080, "inbound", "app",
    ),
    "3: the app to itself": Row(BY_LO_NOT_UID, ONLY_GID, "pod", 8080, "app", "inbound"),
    "4: the proxy to the world": Row(
        "-m owner --uid-owner 1337 -j RETURN", ONLY_UID, "peer", 80, "peer:80", "outbound"
    ),
    "5: the proxy's group to its own pod": Row(
        "! -d {loopback} -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT",
        ONLY_GID, "pod", 8080, "inbound", "app", options=LOOPBACK_IN,
    ),
    "5: the proxy's group to its own pod's DNS": Row(
        "! -d {loopback} -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT",
        ONLY_GID, "pod", 53, "inbound", "app's resolver", options=DNS,
    ),
    "6: the app to itself, by group": Row(
        "-o lo -m owner ! --gid-owner 1337 -j RETURN", APP, "pod", 8080, "app", "outbound", shadows=(BY_LO_NOT_UID,)
    ),
    "7: the proxy's group to the world": Row(
        "-m owner --gid-owner 1337 -j RETURN", ONLY_GID, "peer", 80, "peer:80", "outbound"
    ),
    "8: to loopback, where -i asks for it": Row(
        "-d {loopback} -j RETURN", APP, "loopback", 8080, "app", "outbound", options=LOOPBACK_IN
    ),
    "8: to loopback, where DNS is captured": Row(
        "-d {loopback} -j RETURN", APP, "loopback", 53, "app's resolver", "outbound", options=DNS
    ),
    "9: the app to the world": Row("-j ISTIO_REDIRECT", APP, "peer", 80, "outbound", "peer:80"),
}  # fmt: skip


def host(family: Family, address: str) -> str:
    """An address as a network of its own, as iptables takes it."""
    return f"{address}/{32 if family == IPV4 else 128}"


def filled(pod: Pod, rule: str) -> str:
    networks = {name: host(pod.family, address) for name, address in pod.addresses._asdict().items()}
    return f"ISTIO_OUTPUT {rule.format(**networks)}"


@pytest.mark.parametrize("name", RULES)
def test_output_rule(pod: Pod, name: str) -> None:
    row = RULES[name]
    to = (getattr(pod.addresses, row.to), row.port)
    source = (getattr(pod.addresses, row.source), 0) if row.source else None
    pod.apply(row.options)
    for shadow in row.shadows:
        pod.delete("nat", filled(pod, shadow))
    arrival = pod.dial(row.user, to, source)
    assert (arrival.at, arrival.original or arrival.local) == (row.ends, to)
    pod.delete("nat", filled(pod, row.rule))
    assert pod.dial(row.user, to, source).at == row.without


@pytest.mark.parametrize("number", ["2", "5"])
def test_the_tunnel_port_is_spared_where_the_proxy_calls_its_own_pod(pod: Pod, number: str) -> None:
    row = next(row for name, row in RULES.items() if name.startswith(number))
    pod.apply(row.options)
    assert pod.dial(row.user, (pod.addresses.pod, 15008)).at == "tunnel"
    assert pod.dial(row.user, (pod.addresses.pod, 8080)).at == "inbound"


def test_the_app_talks_to_itself(pod: Pod) -> None:
    pod.apply(ALL)
    for address in (pod.addresses.pod, pod.addresses.second_pod, pod.addresses.loopback):
        assert pod.dial(APP, (address, 8080)).at == "app"


def test_a_rule_for_lo_is_not_for_other_interfaces(pod: Pod) -> None:
    """Rule 3 must let nothing pass that leaves by veth0, which a wrong interface mask takes for lo."""
    pod.apply(ALL)
    to = (pod.addresses.peer, 80)
    assert pod.dial(APP, to).at == "outbound"
    pod.insert("nat", "ISTIO_OUTPUT -o veth0 -m owner ! --uid-owner 1337 -j RETURN")
    assert pod.dial(APP, to).at == "peer:80"


def test_captured_connections_keep_where_they_meant_to_go(pod: Pod) -> None:
    pod.apply(ALL)
    for to in ((pod.addresses.peer, 80), (pod.addresses.outer, 443), (pod.addresses.inner, 8080)):
        arrival = pod.dial(APP, to)
        assert (arrival.at, arrival.original, arrival.answered) == ("outbound", to, to)
        assert arrival.local == (pod.addresses.loopback, 15001)


def test_two_proxy_users_and_groups(pod: Pod) -> None:
    pod.apply("-u 3,4 -g 5,6 -z 15006 -i '*' -b '*'")
    to = (pod.addresses.peer, 80)
    ends = {user: pod.dial(user, to).at for user in (User(3, 9), User(4, 9), User(9, 5), User(9, 6), User(9, 9))}
    assert list(ends.values()) == ["peer:80"] * 4 + ["outbound"]


# More networks of one length than a rule of native nftables holds itself, in both families; and a few of another one.
LONG_LIST = ",".join(
    f"198.51.{n}.0/24,198.18.{n}.7,2001:db8:{n + 100:x}::/48,2001:db8:ff:{n:x}::/64" for n in range(40)
)
# Outbound: what the options capture and leave alone. Each row: options beside BASE; user; to; port; where it ends.
OUTBOUND = {
    "nothing without -i": ("", APP, "peer", 80, "peer:80"),
    "-i list, in it": ("-i 10.99.0.0/16,fd99::/16", APP, "inner", 80, "outbound"),
    "-i list, not in it": ("-i 10.99.0.0/16,fd99::/16", APP, "peer", 80, "peer:80"),
    "-i prefix zero": ("-i 0.0.0.0/0,::/0", APP, "outer", 80, "outbound"),
    "-x, in it": ("-i '*' -x 203.0.113.0/24,2001:db8::/32", APP, "outer", 80, "peer:80"),
    "-x, not in it": ("-i '*' -x 203.0.113.0/24,2001:db8::/32", APP, "inner", 80, "outbound"),
    "-x, a long list, in a network of it": (
        f"-i '*' -x {LONG_LIST},203.0.113.0/24,2001:db8::/48", APP, "outer", 80, "peer:80"
    ),
    "-x, a long list, in it": (f"-i '*' -x {LONG_LIST},203.0.113.9,2001:db8::/64", APP, "outer", 80, "peer:80"),
    "-x, a long list, in its rest": (f"-i '*' -x {LONG_LIST},203.0.0.0/17,2001:db8::/49", APP, "outer", 80, "peer:80"),
    "-x, a long list, beside its networks": (
        f"-i '*' -x {LONG_LIST},203.0.112.0/24,203.0.113.8,2001:db8:1::/48,2001:db8:0:1::/64",
        *(APP, "outer", 80, "outbound"),
    ),
    "-i, a long list, in it": (f"-i {LONG_LIST},203.0.113.0/24,2001:db8::/48", APP, "outer", 80, "outbound"),
    "-i, a long list, not in it": (f"-i {LONG_LIST}", APP, "outer", 80, "peer:80"),
    "-x within -i": ("-i 10.0.0.0/8,fd00::/8 -x 10.99.0.1,fd99::1", APP, "inner", 80, "peer:80"),
    "-q, listed": ("-q 443", APP, "peer", 443, "outbound"),
    "-q, a range": ("-q 400-500", APP, "peer", 443, "outbound"),
    "-q, not listed": ("-q 443", APP, "peer", 80, "peer:80"),
    "-q, listed, but excluded by -x": ("-q 443 -x 203.0.113.9,2001:db8::9", APP, "outer", 443, "peer:443"),
    "-o, listed": ("-i '*' -o 443", APP, "peer", 443, "peer:443"),
    "-o, a range": ("-i '*' -o 400-500", APP, "peer", 443, "peer:443"),
    "-o, not listed": ("-i '*' -o 443", APP, "peer", 80, "outbound"),
    "owner groups, in the list": ("-i '*' --istio-outbound-owner-groups 101,202", User(5, 202), "peer", 80, "outbound"),
    "owner groups, not in it": ("-i '*' --istio-outbound-owner-groups 101,202", User(5, 303), "peer", 80, "peer:80"),
    "no owner groups": ("-i '*' --istio-outbound-owner-groups ''", User(5, 303), "peer", 80, "peer:80"),
    "excluded group": ("-i '*' --istio-outbound-owner-groups-exclude 888", User(5, 888), "peer", 80, "peer:80"),
    "not the excluded one": ("-i '*' --istio-outbound-owner-groups-exclude 888", User(5, 5), "peer", 80, "outbound"),
    "users for ports, in both": (
        "-i '*' --exclude-uids-for-ports tcp:443:5,7-9", User(8, 3), "peer", 443, "peer:443"
    ),
    "users for ports, another port": (
        "-i '*' --exclude-uids-for-ports tcp:443:5,7-9", User(8, 3), "peer", 80, "outbound"
    ),
    "users for ports, another user": (
        "-i '*' --exclude-uids-for-ports tcp:443:5,7-9", User(6, 5), "peer", 443, "outbound"
    ),
    "users for ports, ranges that overlap": (
        "-i '*' --exclude-uids-for-ports 'udp:*:9;tcp:1-100,80,400-500:5-8,7'", User(7, 3), "peer", 443, "peer:443"
    ),
    "users for ports, every port": ("-i '*' --exclude-uids-for-ports tcp:*:5", User(5, 5), "peer", 80, "peer:80"),
    "users for ports, UDP's alone": ("-i '*' --exclude-uids-for-ports udp:*:5", User(5, 5), "peer", 80, "outbound"),
    "users for ports, every user": (
        "-i '*' --exclude-uids-for-ports tcp:443:0-4294967294", User(5, 5), "peer", 443, "peer:443"
    ),
    "users for ports, not in -q": ("-q 80 --exclude-uids-for-ports tcp:80:5", User(5, 5), "peer", 80, "peer:80"),
    "-c, the interface": ("-i '*' -c veth1", APP, "second_peer", 80, "peer:80"),
    "-c, another one": ("-i '*' -c veth1", APP, "peer", 80, "outbound"),
    "-c, a prefix": ("-i '*' -c vet+", APP, "peer", 80, "peer:80"),
    "-c, nothing of the name": ("-i '*' -c veth", APP, "peer", 80, "outbound"),
    "loopback range": (
        "-i '*' --istio-outbound-ipv4-loopback-cidr 127.0.0.0/8", APP, "loopback", 8080, "app"
    ),
    "1.13": ("-i '*' --compat-version 1.13", APP, "peer", 80, "outbound"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTBOUND)
def test_outbound(pod: Pod, name: str) -> None:
    arguments, user, to, port, ends = OUTBOUND[name]
    pod.apply(f"{BASE} {arguments}")
    assert pod.dial(user, (getattr(pod.addresses, to), port)).at == ends


# Inbound, from the peer: options beside BASE; the address dialled; port; where it ends.
INBOUND = {
    "nothing without -b": ("", "pod", 8080, "app"),
    "all": ("-b '*'", "pod", 8080, "inbound"),
    "all, by the other wire": ("-b '*'", "second_pod", 8080, "inbound"),
    "all, where nobody listens": ("-b '*'", "pod", 7777, "inbound"),
    "all, the tunnel port": ("-b '*'", "pod", 15008, "tunnel"),
    "all, another tunnel port": ("-b '*' -e 9090", "pod", 15008, "inbound"),
    "all, -d, listed": ("-b '*' -d 8081,9000-9100", "pod", 8081, "app's other port"),
    "all, -d, in a range": ("-b '*' -d 8081,9000-9100", "pod", 9090, "app's third port"),
    "all, -d, not listed": ("-b '*' -d 8081,9000-9100", "pod", 8080, "inbound"),
    "a list, in it": ("-b 80,8080", "pod", 8080, "inbound"),
    "a list, in its range": ("-b 80,8080-8082", "pod", 8081, "inbound"),
    "a list, not in it": ("-b 80,8080-8082", "pod", 9090, "app's third port"),
    "a list, -d has no effect": ("-b 8080 -d 8080", "pod", 8080, "inbound"),
    "-c, the interface": ("-b '*' -c veth1", "second_pod", 8080, "app"),
    "-c, another one": ("-b '*' -c veth1", "pod", 8080, "inbound"),
    "-k, the interface, nothing outbound": ("-b '*' -k veth1", "second_pod", 8080, "app"),
    "-k, another one": ("-b '*' -k veth1", "pod", 8080, "inbound"),
    "-k, the interface, all outbound": ("-b '*' -k veth1 -i '*'", "second_pod", 8080, "outbound"),
    "-k, a destination in -i": ("-b '*' -k veth1 -i 10.78.0.0/16,fd78::/16", "second_pod", 8080, "outbound"),
    "-k, a destination not in -i": ("-b '*' -k veth1 -i 10.78.0.0/16,fd78::/16", "inner_by_veth1", 8080, "app"),
    "1.13, ssh is left alone": ("-b '*' --compat-version 1.13", "pod", 22, "refused"),
    "ssh is not": ("-b '*'", "pod", 22, "inbound"),
}


# Inbound, from an address of the peer: options beside BASE; the source; where it ends.
SOURCES = {
    "in a network": ("-b '*' --istio-inbound-exclude-cidr 10.77.0.0/16,fd77::/16", "peer", "app"),
    "in none": ("-b '*' --istio-inbound-exclude-cidr 10.77.0.0/16,fd77::/16", "outer", "inbound"),
    "an address": ("-b '*' --istio-inbound-exclude-cidr 203.0.113.9,2001:db8::9", "outer", "app"),
    "beside the address": ("-b '*' --istio-inbound-exclude-cidr 203.0.113.8,2001:db8::8", "outer", "inbound"),
    "every address": ("-b '*' --istio-inbound-exclude-cidr 0.0.0.0/0,::/0", "outer", "app"),
    "networks that overlap": (
        "-b '*' --istio-inbound-exclude-cidr 203.0.113.0/24,203.0.0.0/8,2001:db8::9,2001:db8::/32,2001:db8::/32",
        *("outer", "app"),
    ),
    "a long list": (f"-b '*' --istio-inbound-exclude-cidr {LONG_LIST},203.0.113.0/24,2001:db8::/48", "outer", "app"),
    "not in a long list": (f"-b '*' --istio-inbound-exclude-cidr {LONG_LIST}", "outer", "inbound"),
    "a port of a list": ("-b 8080 --istio-inbound-exclude-cidr 203.0.113.9,2001:db8::9", "outer", "app"),
    "with comments": ("-b '*' --istio-inbound-exclude-cidr 203.0.113.9,2001:db8::9 --rule-comments", "outer", "app"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_inbound_sources(pod: Pod, name: str) -> None:
    """In every mode, whichever table decides."""
    arguments, source, ends = SOURCES[name]
    pod.apply(f"{BASE} {arguments}")
    to = (pod.addresses.pod, 8080)
    assert pod.dial_in(to, (getattr(pod.addresses, source), 0)).at == ends


@pytest.mark.parametrize("name", INBOUND)
def test_inbound(pod: Pod, name: str) -> None:
    arguments, to, port, ends = INBOUND[name]
    pod.apply(f"{BASE} {arguments}")
    address = by_veth1(pod) if to == "inner_by_veth1" else getattr(pod.addresses, to)
    arrival = pod.dial_in((address, port))
    assert arrival.at == ends
    if ends != "refused":
        assert arrival.original == (address, port)


def by_veth1(pod: Pod) -> str:
    """An address of the pod's that the peer reaches by the second wire."""
    address, flag = ("172.31.0.1", "-4") if pod.family == IPV4 else ("2001:db8:31::1", "-6")
    pod.namespace.run("ip", flag, "addr", "add", host(pod.family, address), "dev", "lo")
    pod.peer.run("ip", flag, "route", "add", address, "via", pod.addresses.second_pod)
    return address


def test_a_virtual_machines_traffic_through_the_pod_is_captured(pod: Pod) -> None:
    """With -k what comes in by the interface goes out for somebody: it is the peer that plays the machine."""
    pod.apply(f"{BASE} -b '*' -i '*' -k veth1")
    away, flag = ("192.0.2.77", "-4") if pod.family == IPV4 else ("2001:db8:77::1", "-6")
    pod.peer.run("ip", flag, "route", "add", away, "via", pod.addresses.second_pod)
    arrival = pod.dial_in((away, 80))
    assert (arrival.at, arrival.original) == ("outbound", (away, 80))


def test_connections_from_outside_are_seen_with_their_source(pod: Pod) -> None:
    pod.apply(ALL)
    arrival = pod.dial_in((pod.addresses.pod, 8080), (pod.addresses.outer, 40001))
    assert arrival.source == (pod.addresses.outer, 40001)
    assert arrival.answered == (pod.addresses.pod, 8080)


def test_the_other_family_is_left_alone_where_it_is_not_asked_for() -> None:
    with Pod(IPV6) as pod:
        pod.listen("app", 8080)
        pod.apply(f"{ALL} --no-enable-ipv6")
        assert pod.dial_in((ADDRESSES[IPV6].pod, 8080)).at == "app"
