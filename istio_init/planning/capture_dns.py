"""The rules of DNS capture: queries go to the agent, and conntrack tells their two legs apart."""

from __future__ import annotations

from istio_init.model.extensions import CtZone
from istio_init.model.rules import UDP, Destination, Jump, Owner, PortRange, Redirect, Source, SourcePorts
from istio_init.planning.capture import (
    AGENT_DNS_PORT,
    DNS_PORT,
    IS_TCP,
    IS_UDP,
    PlannedRule,
    istio_rule,
    of_family,
    one_port,
    proxy_owners,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Family
    from istio_init.options.table import Options
    from istio_init.planning.capture import Why

# Conntrack zones of the two legs of a DNS query: the proxy's upstream one and the application's.
PROXY_ZONE, APP_ZONE = 1, 2
# Flags that several reasons name.
DNS_FLAGS = "--redirect-dns --dns-servers"


def queries(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Redirect queries to the agent; zones keep conntrack from taking the agent's query for the application's."""
    servers = dict.fromkeys(of_family(options.dns_servers or (), family))
    # None is any server.
    destinations = (None,) if options.capture_all_dns else tuple(map(Destination, servers))
    why: Why = ("outbound packets enter ISTIO_OUTPUT_DNS for conntrack zones", DNS_FLAGS)
    yield PlannedRule("raw", "OUTPUT", istio_rule(to=Jump("ISTIO_OUTPUT_DNS")), why)
    if destinations:
        why = ("outbound traffic enters ISTIO_OUTPUT_DNS for DNS capture", DNS_FLAGS)
        yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(to=Jump("ISTIO_OUTPUT_DNS")), why)
    agent = Redirect(PortRange(AGENT_DNS_PORT, AGENT_DNS_PORT))
    why = ("DNS queries go to the agent, port 15053", DNS_FLAGS)
    for protocol in (IS_TCP, IS_UDP):
        for destination in destinations:
            query = istio_rule(destination, protocol, one_port(DNS_PORT), to=agent)
            yield PlannedRule("nat", "ISTIO_OUTPUT_DNS", query, why)
    yield from _zones(options, destinations)


def _zones(options: Options, destinations: tuple[Destination | None, ...]) -> Iterator[PlannedRule]:
    answer_by_agent = SourcePorts(PortRange(AGENT_DNS_PORT, AGENT_DNS_PORT))
    answer = SourcePorts(PortRange(DNS_PORT, DNS_PORT))
    proxy_why: Why = ("the agent's queries have their own conntrack zone, or they would share the app's NAT", DNS_FLAGS)
    app_why: Why = ("the app's queries have their own conntrack zone, or they would share the agent's NAT", DNS_FLAGS)
    for owner in proxy_owners(options):
        query = istio_rule(IS_UDP, one_port(DNS_PORT), owner, to=CtZone(PROXY_ZONE))
        yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", query, proxy_why)
        answers = istio_rule(IS_UDP, answer_by_agent, owner, to=CtZone(APP_ZONE))
        yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", answers, app_why)
    yield from _excluded_users(options, destinations)
    if destinations:
        why: Why = ("inbound packets enter ISTIO_INBOUND for conntrack zones", DNS_FLAGS)
        yield PlannedRule("raw", "PREROUTING", istio_rule(to=Jump("ISTIO_INBOUND")), why)
    for destination in destinations:
        source = Source(destination.network) if destination else None
        query = istio_rule(destination, IS_UDP, one_port(DNS_PORT), to=CtZone(APP_ZONE))
        yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", query, app_why)
        yield PlannedRule("raw", "ISTIO_INBOUND", istio_rule(source, IS_UDP, answer, to=CtZone(PROXY_ZONE)), proxy_why)


def _excluded_users(options: Options, destinations: tuple[Destination | None, ...]) -> Iterator[PlannedRule]:
    """Queries that are not captured are in the zone of the servers' answers, as the proxy's are."""
    why: Why = (
        "an excluded user's queries are kept apart from the app's, which are redirected",
        "--exclude-uids-for-ports",
    )
    for protocol, ports, users in options.exclude_uids_for_ports:
        if protocol != UDP or (ports and not any(each.low <= DNS_PORT <= each.high for each in ports)):
            continue
        for low, high in users:
            for destination in destinations:
                owner = Owner("uid", low, high)
                query = istio_rule(destination, IS_UDP, one_port(DNS_PORT), owner, to=CtZone(PROXY_ZONE))
                yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", query, why)
