"""DNS capture: the app's queries go to the agent, the agent's own to the server, and conntrack keeps them apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.kit.endpoints import User
from integration.kit.pod import APP, PODS, PROXY, Pod
from istio_init.model.rules import IPV4

SERVERS = "-i '*' -b '*' --redirect-dns --dns-servers 10.77.0.1,fd77::1,10.99.0.1,fd99::1"
ALL_SERVERS = "-i '*' -b '*' --redirect-dns --capture-all-dns"
# Istio 1.13 looks at TCP alone, but for queries.
OLD = f"{SERVERS} --compat-version 1.13"
EACH = pytest.mark.parametrize("options", [SERVERS, ALL_SERVERS, OLD], ids=["servers", "all", "1.13"])
# A port that the app and the proxy both ask from, one after the other.
PORT = 40053


@pytest.fixture(params=PODS, ids="-".join)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod whose agent answers at 15053 of loopback, and a peer with a server at port 53 of each of its addresses."""
    with Pod(*request.param) as fresh:
        agent = (fresh.addresses.loopback, 15053)
        fresh.receive("agent", agent, PROXY)
        # One receiver for each address: a datagram's answer leaves from the address that it came to.
        for name in ("peer", "inner", "outer"):
            fresh.receive(f"server at {name}", (getattr(fresh.addresses, name), 53), at=fresh.peer)
        fresh.receive("server at pod", (fresh.addresses.pod, 53))
        fresh.listen("agent", 15053, PROXY)
        fresh.listen("outbound", 15001)
        fresh.listen("inbound", 15006)
        fresh.listen("resolver in the pod", 53)
        fresh.listen_at_peer("server", 53)
        yield fresh


@EACH
def test_queries_over_udp(pod: Pod, options: str) -> None:
    pod.apply(options)
    for server in (pod.addresses.peer, pod.addresses.inner):
        arrival = pod.query(APP, (server, 53))
        assert (arrival.at, arrival.answered) == ("agent", (server, 53))
    assert pod.query(PROXY, (pod.addresses.peer, 53)).at == "server at peer"


@EACH
def test_queries_over_tcp(pod: Pod, options: str) -> None:
    pod.apply(options)
    for server in (pod.addresses.peer, pod.addresses.inner):
        arrival = pod.dial(APP, (server, 53))
        assert (arrival.at, arrival.original) == ("agent", (server, 53))
    assert pod.dial(PROXY, (pod.addresses.peer, 53)).at == "server"


@pytest.mark.parametrize(
    ("options", "over_udp", "over_tcp"),
    [
        (SERVERS, "server at outer", "outbound"),
        (ALL_SERVERS, "agent", "agent"),
        ("-i '*'", "server at outer", "outbound"),
    ],
)
def test_a_server_that_is_not_listed(pod: Pod, options: str, over_udp: str, over_tcp: str) -> None:
    pod.apply(options)
    assert pod.query(APP, (pod.addresses.outer, 53)).at == over_udp
    assert pod.dial(APP, (pod.addresses.outer, 53)).at == over_tcp


def test_excluded_outbound_ports_are_no_queries(pod: Pod) -> None:
    pod.apply(f"{SERVERS} -o 53")
    assert pod.query(APP, (pod.addresses.peer, 53)).at == "server at peer"
    assert pod.dial(APP, (pod.addresses.peer, 53)).at == "server"


@EACH
def test_queries_of_a_user_who_is_excluded(pod: Pod, options: str) -> None:
    """For each protocol by itself; the others' queries are captured."""
    pod.apply(f"{options} --exclude-uids-for-ports 'udp:53:1200;tcp:50-60:1201'")
    server = (pod.addresses.peer, 53)
    by_udp, by_tcp = User(1200, 5), User(1201, 5)
    assert [pod.query(user, server).at for user in (by_udp, by_tcp, APP)] == ["server at peer", "agent", "agent"]
    assert [pod.dial(user, server).at for user in (by_udp, by_tcp, APP)] == ["agent", "server", "agent"]
    assert pod.query(by_udp, server).answered == server


@EACH
@pytest.mark.parametrize("first", ["app", "excluded"])
def test_one_source_port_used_by_the_app_and_by_an_excluded_user(pod: Pod, options: str, first: str) -> None:
    pod.apply(f"{options} --exclude-uids-for-ports udp:53:1200")
    server = (pod.addresses.peer, 53)
    ends = {"app": (APP, "agent"), "excluded": (User(1200, 5), "server at peer")}
    for name in (first, *(ends.keys() - {first}), first):
        user, at = ends[name]
        assert pod.query(user, server, PORT).at == at
    assert not strays(pod)


def test_a_family_without_servers(pod: Pod) -> None:
    mine, other = ("10.77.0.1", "fd77::1") if pod.family == IPV4 else ("fd77::1", "10.77.0.1")
    pod.apply(f"-i '*' --redirect-dns --dns-servers {other}")
    assert pod.query(APP, (mine, 53)).at == "server at peer"


def test_the_app_asks_a_resolver_in_its_own_pod(pod: Pod) -> None:
    """Rules 3 and 6 let nothing on TCP port 53 through, so that queries to a server that is the pod reach the agent."""
    pod.apply(f"-i '*' --redirect-dns --dns-servers {pod.addresses.pod}")
    assert pod.dial(APP, (pod.addresses.pod, 53)).at == "agent"
    assert pod.dial(APP, (pod.addresses.loopback, 53)).at == "resolver in the pod"


def test_the_proxy_asks_a_resolver_in_its_own_pod(pod: Pod) -> None:
    """Rule 2 spares port 53, or the query would come back in as an inbound connection; rule 5 does not."""
    pod.apply(SERVERS)
    assert pod.dial(User(1337, 1000), (pod.addresses.pod, 53)).at == "resolver in the pod"
    assert pod.dial(User(1000, 1337), (pod.addresses.pod, 53)).at == "inbound"


@EACH
def test_one_source_port_used_by_the_app_and_then_by_the_proxy(pod: Pod, options: str) -> None:
    pod.apply(options)
    server = (pod.addresses.peer, 53)
    assert pod.query(APP, server, PORT).at == "agent"
    assert pod.query(PROXY, server, PORT).at == "server at peer"
    assert pod.query(APP, server, PORT).at == "agent"


@EACH
def test_one_source_port_used_by_the_proxy_and_then_by_the_app(pod: Pod, options: str) -> None:
    pod.apply(options)
    server = (pod.addresses.peer, 53)
    assert pod.query(PROXY, server, PORT).at == "server at peer"
    assert pod.query(APP, server, PORT).at == "agent"
    assert pod.query(PROXY, server, PORT).at == "server at peer"


@pytest.mark.parametrize(("first", "second", "at"), [(APP, PROXY, "agent"), (PROXY, APP, "server at peer")])
def test_without_zones_the_second_inherits_what_was_decided_for_the_first(
    pod: Pod, first: User, second: User, at: str
) -> None:
    pod.apply(SERVERS)
    pod.flush("raw")
    server = (pod.addresses.peer, 53)
    assert pod.query(first, server, PORT).at == at
    assert pod.query(second, server, PORT).at == at


@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_the_proxys_queries_have_their_zone(pod: Pod, kind: str) -> None:
    """By uid and by gid: without its rule, the proxy's query is in the app's zone and inherits its way."""
    pod.apply(SERVERS)
    proxy = User(1337, 1000) if kind == "uid" else User(1000, 1337)
    server = (pod.addresses.peer, 53)
    assert pod.query(APP, server, PORT).at == "agent"
    assert pod.query(proxy, server, PORT).at == "server at peer"
    pod.delete("raw", f"ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --{kind}-owner 1337 -j CT --zone 1")
    assert pod.query(proxy, server, PORT).at == "agent"


@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_the_agents_answers_are_in_the_apps_zone(pod: Pod, kind: str) -> None:
    """Without its rule, the answer is not known to belong to the query and comes from the agent's own address."""
    pod.apply(SERVERS)
    agent = (pod.addresses.loopback, 15053)
    pod.receivers.pop("agent").close()
    pod.receive("agent", agent, User(1337, 1000) if kind == "uid" else User(1000, 1337))
    server = (pod.addresses.peer, 53)
    assert pod.query(APP, server).answered == server
    pod.delete("raw", f"ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --{kind}-owner 1337 -j CT --zone 2")
    assert pod.query(APP, server).answered == agent


def test_the_apps_queries_have_their_zone(pod: Pod) -> None:
    pod.apply(ALL_SERVERS)
    server = (pod.addresses.peer, 53)
    pod.delete("raw", "ISTIO_OUTPUT_DNS -p udp --dport 53 -j CT --zone 2")
    assert pod.query(APP, server).answered == (pod.addresses.loopback, 15053)


@EACH
def test_the_servers_answers_are_in_the_proxys_zone(pod: Pod, options: str) -> None:
    """Without the rule they get through, too, but as connections of their own."""
    pod.apply(options)
    server = (pod.addresses.peer, 53)
    assert pod.query(PROXY, server).at == "server at peer"
    assert not strays(pod)
    source = "" if options == ALL_SERVERS else f"-s {server[0]} "
    pod.delete("raw", f"ISTIO_INBOUND {source}-p udp --sport 53 -j CT --zone 1")
    assert pod.query(PROXY, server).at == "server at peer"
    assert strays(pod)


def strays(pod: Pod) -> list[str]:
    """Tracked connections that an answer from port 53 has opened."""
    entries = pod.namespace.run("cat", "/proc/net/nf_conntrack").splitlines()
    # The first direction's ports come first: the one that opened the connection.
    return [entry for entry in entries if " udp " in entry and entry.partition("sport=")[2].startswith("53 ")]


@pytest.mark.parametrize(("rule", "over_tcp", "over_udp"), [
    ("ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS", "outbound", "server at peer"),
    ("ISTIO_OUTPUT_DNS -p udp --dport 53 -j REDIRECT --to-ports 15053", "agent", "server at peer"),
    ("ISTIO_OUTPUT_DNS -p tcp --dport 53 -j REDIRECT --to-ports 15053", "outbound", "agent"),
])  # fmt: skip
def test_without_a_rule_of_nat_queries_go_their_own_way(pod: Pod, rule: str, over_tcp: str, over_udp: str) -> None:
    pod.apply(ALL_SERVERS)
    pod.delete("nat", rule)
    assert pod.dial(APP, (pod.addresses.peer, 53)).at == over_tcp
    assert pod.query(APP, (pod.addresses.peer, 53)).at == over_udp


def test_queries_in_many_at_once_find_their_own_answers(pod: Pod) -> None:
    """The agent's answers go to the sockets that asked, whichever server they had asked."""
    pod.apply(SERVERS)
    servers = [(pod.addresses.peer, 53), (pod.addresses.inner, 53)] * 5
    for number, server in enumerate(servers):
        arrival = pod.query(APP, server, 41000 + number)
        assert arrival.source is not None
        assert (arrival.at, arrival.answered, arrival.source[1]) == ("agent", server, 41000 + number)


def test_the_agent_hears_nothing_from_outside(pod: Pod) -> None:
    """Queries to the pod from outside are the app's business: raw's ISTIO_INBOUND only names a zone."""
    pod.apply("--redirect-dns --capture-all-dns")
    assert pod.dial_in((pod.addresses.pod, 53)).at == "resolver in the pod"
