"""What capture by eBPF does to real connections: the tables of REDIRECT, TPROXY and DNS capture, without a rule.

Each table has one pod per family, whose options are those of one row after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from integration.kit.ebpf_node import EbpfNode
from integration.kit.ebpf_pod import EbpfPod
from integration.kit.endpoints import User
from integration.kit.pod import APP, PROXY
from integration.traffic import test_traffic, test_traffic_dns, test_traffic_tproxy
from integration.traffic.test_traffic_dns import ALL_SERVERS, PORT, SERVERS
from istio_init.errors import InitError
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from integration.kit.endpoints import Address
    from istio_init.model.rules import Family

REFUSED = "refused by istio-init"
# Options of the tables that ask for what only rules can do.
RULES_ONLY = (" -c ", " -k ", "--compat-version", "--exclude-uids-for-ports")
BOTH_FAMILIES = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def pod(node: EbpfNode, family: Family) -> Iterator[EbpfPod]:
    """The pod of the tables of REDIRECT."""
    with EbpfPod(family, node) as fresh:
        fresh.listen_everywhere()
        yield fresh


@pytest.fixture
def transparent(node: EbpfNode, family: Family) -> Iterator[EbpfPod]:
    """The pod of the tables of TPROXY."""
    with EbpfPod(family, node) as fresh:
        fresh.listen("inbound", 15006, transparent=True)
        for name, port in (("outbound", 15001), ("tunnel", 15008), ("app", 8080), ("app's other port", 9090)):
            fresh.listen(name, port)
        fresh.listen_at_peer("peer", 80)
        yield fresh


@pytest.fixture
def asking(node: EbpfNode, family: Family) -> Iterator[EbpfPod]:
    """The pod of the tables of DNS capture."""
    with EbpfPod(family, node) as fresh:
        fresh.receive("agent", (fresh.addresses.loopback, 15053), PROXY)
        for name in ("peer", "inner", "outer"):
            fresh.receive(f"server at {name}", (getattr(fresh.addresses, name), 53), at=fresh.peer)
        fresh.receive("server at pod", (fresh.addresses.pod, 53))
        fresh.listen("agent", 15053, PROXY)
        for name, port in (("outbound", 15001), ("inbound", 15006), ("resolver in the pod", 53)):
            fresh.listen(name, port)
        fresh.listen_at_peer("server", 53)
        yield fresh


def is_refused(pod: EbpfPod, arguments: str) -> bool:
    """Capture the pod; returns whether these options are refused."""
    try:
        pod.apply(arguments)
    except InitError:
        return True
    return False


def expected(arguments: str, ends: str) -> str:
    return REFUSED if any(each in f" {arguments}" for each in RULES_ONLY) else ends


@BOTH_FAMILIES
def test_the_rules_of_output(pod: EbpfPod) -> None:
    ended = {}
    for name, row in test_traffic.RULES.items():
        pod.apply(row.options)
        to = (getattr(pod.addresses, row.to), row.port)
        arrival = pod.dial(row.user, to, (getattr(pod.addresses, row.source), 0) if row.source else None)
        ended[name] = arrival.at, arrival.original or arrival.local, arrival.answered
    dialled = {name: (getattr(pod.addresses, row.to), row.port) for name, row in test_traffic.RULES.items()}
    assert ended == {name: (row.ends, dialled[name], dialled[name]) for name, row in test_traffic.RULES.items()}


@BOTH_FAMILIES
def test_outbound(pod: EbpfPod) -> None:
    ended = {}
    for name, (arguments, user, to, port, _) in test_traffic.OUTBOUND.items():
        if is_refused(pod, f"{test_traffic.BASE} {arguments}"):
            ended[name] = REFUSED
        else:
            ended[name] = pod.dial(user, (getattr(pod.addresses, to), port)).at
    assert ended == {name: expected(row[0], row[-1]) for name, row in test_traffic.OUTBOUND.items()}
    assert pod.namespace.run("cat", "/proc/net/nf_conntrack") == ""
    assert "ISTIO" not in pod.namespace.run("iptables-legacy-save") + pod.namespace.run("nft", "list", "ruleset")


@BOTH_FAMILIES
def test_inbound(pod: EbpfPod) -> None:
    assert_inbound(pod, test_traffic.BASE, test_traffic.INBOUND)
    assert pod.namespace.run("cat", "/proc/net/nf_conntrack") == ""


@BOTH_FAMILIES
def test_inbound_with_tproxy(transparent: EbpfPod) -> None:
    assert_inbound(transparent, test_traffic_tproxy.BASE, test_traffic_tproxy.INBOUND)
    assert transparent.namespace.run("cat", "/proc/net/nf_conntrack") == ""


def assert_inbound(pod: EbpfPod, base: str, rows: dict[str, tuple[str, str, int, str]]) -> None:
    """Every connection of a table of test_traffic*.py ends where it should, at the address that was dialled."""
    ended: dict[str, tuple[str, Address | None]] = {}
    for name, (arguments, to, port, _) in rows.items():
        if is_refused(pod, f"{base} {arguments}"):
            ended[name] = REFUSED, None
        else:
            arrival = pod.dial_in((getattr(pod.addresses, to), port))
            ended[name] = arrival.at, arrival.original or arrival.local
    ends = {name: expected(row[0], row[-1]) for name, row in rows.items()}
    dialled = {
        name: None if ends[name].startswith("refused") else (getattr(pod.addresses, to), port)
        for name, (_, to, port, _) in rows.items()
    }
    assert ended == {name: (end, dialled[name]) for name, end in ends.items()}


@BOTH_FAMILIES
def test_redirect_beside_the_tables(pod: EbpfPod) -> None:
    for check in (
        test_traffic.test_captured_connections_keep_where_they_meant_to_go,
        test_traffic.test_the_app_talks_to_itself,
        test_traffic.test_two_proxy_users_and_groups,
        test_traffic.test_connections_from_outside_are_seen_with_their_source,
    ):
        check(pod)
    for number in "25":
        test_traffic.test_the_tunnel_port_is_spared_where_the_proxy_calls_its_own_pod(pod, number)


@BOTH_FAMILIES
def test_tproxy_beside_the_table(transparent: EbpfPod, family: Family) -> None:
    for check in (
        test_traffic_tproxy.test_both_addresses_are_kept,
        test_traffic_tproxy.test_the_app_sees_the_clients_address,
        test_traffic_tproxy.test_outbound_is_as_ever,
        test_traffic_tproxy.test_another_mark_and_table,
    ):
        check(transparent)
    # Released, it is called directly, and no route of TPROXY's is left.
    removed = transparent.options(f"{test_traffic_tproxy.ALL} -t 0x111 -r 7")
    assert socket_capture.remove(removed, transparent.node.installation)
    assert transparent.dial_in((transparent.addresses.pod, 8080)).at == "app"
    assert transparent.dial(APP, (transparent.addresses.peer, 80)).at == "peer"
    assert "lookup 7" not in transparent.namespace.run("ip", "-4" if family == IPV4 else "-6", "rule")


@BOTH_FAMILIES
def test_the_rules_of_mangle(transparent: EbpfPod) -> None:
    transparent.apply(test_traffic_tproxy.ALL)
    for name, (_, user, port, source, ends, _) in test_traffic_tproxy.RULES.items():
        bound = (getattr(transparent.addresses, source), 0) if source else None
        assert transparent.dial(user, (transparent.addresses.pod, port), bound).at == ends, name
    # The proxy's calls to its own pod are captured where calls from outside are.
    for inbound, ends in ("", "app"), ("-b 9090", "app"), ("-b '*' -d 8080", "app"), ("-b 8080", "inbound"):
        transparent.apply(f"{test_traffic_tproxy.BASE} -i '*' {inbound}")
        assert transparent.dial(User(1000, 1337), (transparent.addresses.pod, 8080)).at == ends, inbound


@BOTH_FAMILIES
def test_dns(asking: EbpfPod) -> None:
    for options in (SERVERS, ALL_SERVERS, f"{SERVERS} -m TPROXY"):
        test_traffic_dns.test_queries_over_udp(asking, options)
        for server in (asking.addresses.peer, asking.addresses.inner):
            # The agent does not need the server's address, and is not told it; the app sees it.
            arrival = asking.dial(APP, (server, 53))
            assert (arrival.at, arrival.answered) == ("agent", (server, 53))
        assert asking.dial(PROXY, (asking.addresses.peer, 53)).at == "server"
    for options, over_udp, over_tcp in (
        (SERVERS, "server at outer", "outbound"),
        (ALL_SERVERS, "agent", "agent"),
        ("-i '*'", "server at outer", "outbound"),
    ):
        test_traffic_dns.test_a_server_that_is_not_listed(asking, options, over_udp, over_tcp)
    for check in (
        test_traffic_dns.test_excluded_outbound_ports_are_no_queries,
        test_traffic_dns.test_a_family_without_servers,
        test_traffic_dns.test_the_app_asks_a_resolver_in_its_own_pod,
        test_traffic_dns.test_the_proxy_asks_a_resolver_in_its_own_pod,
        test_traffic_dns.test_queries_in_many_at_once_find_their_own_answers,
        test_traffic_dns.test_the_agent_hears_nothing_from_outside,
    ):
        check(asking)


@BOTH_FAMILIES
def test_one_source_port_of_the_app_and_the_proxy_in_turn(asking: EbpfPod) -> None:
    server = (asking.addresses.peer, 53)
    for options in (SERVERS, ALL_SERVERS):
        asking.apply(options)
        ends = [asking.query(user, server, PORT).at for user in (APP, PROXY, APP, PROXY)]
        assert ends == ["agent", "server at peer"] * 2


def test_the_other_family_is_left_alone_where_it_is_not_asked_for(node: EbpfNode) -> None:
    with EbpfPod(IPV6, node) as pod:
        pod.listen("app", 8080)
        pod.listen_at_peer("peer", 80)
        pod.apply(f"{test_traffic.ALL} --no-enable-ipv6")
        assert pod.dial_in((pod.addresses.pod, 8080)).at == "app"
        assert pod.dial(APP, (pod.addresses.peer, 80)).at == "peer"


@BOTH_FAMILIES
def test_users_of_the_proxy_beyond_the_first(pod: EbpfPod) -> None:
    """As many users and groups as a pod can have."""
    pod.apply("-u 3,4,5,6 -g 7,8,9,10 -i '*' -b '*'")
    users = [*(User(uid, 99) for uid in range(2, 8)), *(User(99, gid) for gid in range(6, 12))]
    ends = [pod.dial(user, (pod.addresses.peer, 80)).at for user in users]
    assert ends == ["outbound", *["peer:80"] * 4, "outbound"] * 2
