"""From Options to rules: what Istio's sidecar needs of netfilter, one function per traffic concern.

The finished chains, for REDIRECT with -i '*' -b '*' (nat table; the order of the rules matters, see each function):

    PREROUTING ──tcp──► ISTIO_INBOUND ── tunnel port, -d ports ──► RETURN: straight to the app
                              └──────── the rest ──► ISTIO_IN_REDIRECT ──► Envoy :15006

    OUTPUT ──► ISTIO_OUTPUT  1  from 127.0.0.6 by lo ─────────────► RETURN: Envoy to its own app
                             2  proxy uid by lo, not to loopback ─► ISTIO_IN_REDIRECT ──► Envoy :15006
                             3  other uids by lo ─────────────────► RETURN: the app to itself
                             4  proxy uid ────────────────────────► RETURN: Envoy to the world
                             5-7  the same as 2-4 by gid
                             8  to loopback, -x ranges ───────────► RETURN
                             9  the rest (-i) ────────────────────► ISTIO_REDIRECT ──► Envoy :15001

With TPROXY inbound is captured in mangle instead (ISTIO_INBOUND ──► ISTIO_DIVERT or ISTIO_TPROXY), by mark
and policy route. With DNS capture ISTIO_OUTPUT goes through ISTIO_OUTPUT_DNS before rule 8, and raw puts the
two legs of each query into conntrack zones of their own.

The rules and their order are Istio's (tools/istio-iptables/pkg/capture, main of August 2026).
"""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    IPV4,
    IPV6,
    LOOPBACK_INTERFACE,
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Ruleset,
    Run,
    Source,
    SourcePorts,
    Table,
    Verdict,
    jumps,
    ordered,
)
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.model.rules import Family, Match, TableName, Target
    from istio_init.options.table import Options

DNS_PORT = 53
# Where Istio's agent answers DNS queries.
AGENT_DNS_PORT = 15053
# What Envoy binds its connections to the app to (InboundPassthroughBindIpv4 and v6 in Istio).
PASSTHROUGH = {IPV4: Network(b"\x7f\0\0\6", 32), IPV6: Network(bytes(15) + b"\6", 128)}
IPV6_LOOPBACK = Network(bytes(15) + b"\1", 128)
# Conntrack zones of the two legs of a DNS query: the proxy's upstream one and the application's.
PROXY_ZONE, APP_ZONE = 1, 2
SSH_PORT = 22

RETURN, ACCEPT, DROP = Verdict("RETURN"), Verdict("ACCEPT"), Verdict("DROP")
IS_TCP, IS_UDP = Protocol(TCP), Protocol(UDP)
BY_LO, FROM_LO = OutInterface(LOOPBACK_INTERFACE), InInterface(LOOPBACK_INTERFACE)


class PlannedRule(Record):
    """A rule, or a run of them, and where it goes: appended to the chain, or, with `at`, inserted.

    `at` counts from 1 and from the top, where only rules that were inserted before may stand.
    """

    table: TableName
    chain: str
    part: Rule | Run
    at: int = 0

    @property
    def rule(self) -> Rule:
        """The rule; of a run, the first."""
        return self.part.unit[0] if isinstance(self.part, Run) else self.part

    def singly(self) -> Iterator[PlannedRule]:
        """A step for each rule of a run."""
        if isinstance(self.part, Run):
            return (self.replace(part=rule) for rule in self.part.rules())
        return iter((self,))


def capture(options: Options, family: Family) -> Ruleset:
    """The rules of one address family, as the kernel is to hold them."""
    chains: dict[TableName, dict[str, Chain]] = {}
    for table, steps in _grouped(options, family).items():
        chains[table] = {name: _chain(table, name, own) for name, own in steps.items()}
        for chain in tuple(chains[table].values()):
            for name in jumps(chain):
                chains[table].setdefault(name, Chain(name, ()))
    names = [table for table in BUILTIN_CHAINS if table in chains]
    return Ruleset(family, tuple(Table(table, ordered(table, chains[table])) for table in names))


def _grouped(options: Options, family: Family) -> dict[TableName, dict[str, list[PlannedRule]]]:
    """All steps of all concerns by table and chain, each chain's in the order in which they are taken."""
    steps: dict[TableName, dict[str, list[PlannedRule]]] = {}
    for concern in CONCERNS:
        for step in concern(options, family):
            chains = steps.get(step.table) or steps.setdefault(step.table, {})
            (chains.get(step.chain) or chains.setdefault(step.chain, [])).append(step)
    return steps


def _chain(table: TableName, name: str, steps: list[PlannedRule]) -> Chain:
    # An insertion counts from the top: what was appended before it makes no difference.
    parts = [step.part for step in steps if not step.at]
    inserted = [step for step in steps if step.at]
    for step in inserted:
        parts.insert(step.at - 1, step.part)
    if name not in BUILTIN_CHAINS[table]:
        return Chain.of(name, tuple(parts))
    return Chain.of(name, tuple(parts), "ACCEPT", len(inserted))


def _rule(*matches: Match | None, to: Target) -> Rule:
    """A rule of ours; None stands for a match that asks nothing."""
    return Rule(tuple(filter(None, matches)), to, True)


def _port_run(ports: tuple[PortRange, ...], unit: Callable[[DestinationPorts], tuple[Rule, ...]]) -> tuple[Run, ...]:
    """For each of the ports the rules that `unit` makes; nothing for none."""
    return (Run(unit(DestinationPorts(ports[0], False)), ports),) if ports else ()


def _network_runs(networks: tuple[Network, ...], to: Target) -> tuple[Rule | Run, ...]:
    """For each of the networks a rule to this target."""
    prefixes = networks.prefixes if hasattr(networks, "prefixes") else [network.prefix for network in networks]
    if all(prefixes):
        return (Run((_rule(Destination(networks[0], False), to=to),), networks),) if networks else ()
    return tuple(_rule(_to(network), to=to) for network in networks)


def _to(network: Network) -> Destination | None:
    """-d NETWORK; nothing for a network that holds every address, which is how the kernel keeps it."""
    return Destination(network, False) if network.prefix else None


def _port(port: int, *, negated: bool = False) -> DestinationPorts:
    return DestinationPorts(PortRange(port, port), negated)


def _owners(options: Options) -> tuple[Owner, ...]:
    """The proxy's identities, each uid in turn, then each gid; without gids, the uids are taken for them, too."""
    users = (Owner("uid", uid, uid) for uid in options.proxy_uid)
    return (*users, *(Owner("gid", gid, gid) for gid in options.proxy_gid or options.proxy_uid))


def loopback(options: Options, family: Family) -> Network:
    """The loopback range of a family."""
    return options.istio_outbound_ipv4_loopback_cidr if family == IPV4 else IPV6_LOOPBACK


def uses_tproxy(options: Options) -> bool:
    """Whether inbound traffic is captured with TPROXY (if any is, see --istio-inbound-ports)."""
    return options.istio_inbound_interception_mode == "TPROXY"


def captures_dns(options: Options) -> bool:
    """Whether DNS is captured: asked for, and there are servers to tell by or all count."""
    return options.redirect_dns and (options.capture_all_dns or bool(options.dns_servers))


def _inbound_table(options: Options) -> TableName:
    return "mangle" if uses_tproxy(options) else "nat"


def _of_family(networks: tuple[Network, ...], family: Family) -> tuple[Network, ...]:
    size = len(PASSTHROUGH[family].address)
    if hasattr(networks, "width"):  # a long list's, which are all of one family
        return networks if networks.width == size else ()
    return tuple([network for network in networks if len(network.address) == size])


def _behind(first: Network, networks: tuple[Network, ...]) -> tuple[Network, ...]:
    """One network, and then the others."""
    return networks.behind(first) if hasattr(networks, "behind") else (first, *networks)


def _old(options: Options) -> bool:
    """Whether the rules are to be those of Istio 1.13."""
    return options.compat_version == "1.13"


def looks_at_tcp_alone(options: Options) -> bool:
    """Whether nothing but TCP comes to ISTIO_OUTPUT: in 1.13, unless DNS queries are captured, which are UDP, too."""
    return _old(options) and not captures_dns(options)


def exclude_interfaces(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001 (all concerns have one shape)
    """Excluded interfaces first of all: nothing that crosses them is ours."""
    tables: tuple[TableName, ...] = ("nat", "mangle") if uses_tproxy(options) else ("nat",)
    for table in tables:
        for name in options.istio_exclude_interfaces:
            yield PlannedRule(table, "PREROUTING", _rule(InInterface(name), to=RETURN))
            yield PlannedRule(table, "OUTPUT", _rule(OutInterface(name), to=RETURN))


def virtual_machine_interfaces(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """What comes from a virtual machine is not inbound; outbound() may still capture it in front of this."""
    for name in options.kube_virt_interfaces:
        yield PlannedRule("nat", "PREROUTING", _rule(InInterface(name), to=RETURN), at=1)


def drop_invalid(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """Out-of-window packets would be answered with a reset by an unknowing stack."""
    if options.drop_invalid:
        from istio_init.model.extensions import CtState

        yield PlannedRule("mangle", "PREROUTING", _rule(CtState(("INVALID",)), to=Jump("ISTIO_DROP")))
        yield PlannedRule("mangle", "ISTIO_DROP", _rule(to=DROP))


def redirect_chains(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """The two ends of the way, and the tunnel port, which Envoy listens on itself."""
    if not _old(options):
        yield PlannedRule("nat", "ISTIO_INBOUND", _rule(IS_TCP, _port(options.inbound_tunnel_port), to=RETURN))
    for chain, port in (("ISTIO_REDIRECT", options.envoy_port), ("ISTIO_IN_REDIRECT", options.inbound_capture_port)):
        yield PlannedRule("nat", chain, _rule(IS_TCP, to=Redirect(PortRange(port, port))))


def inbound(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Inbound capture: all ports but the excluded ones, or the listed ports."""
    if not options.istio_inbound_ports:
        return
    if uses_tproxy(options):
        yield from _tproxy_chains(options, family)
    table = _inbound_table(options)
    yield PlannedRule(table, "PREROUTING", _rule(IS_TCP, to=Jump("ISTIO_INBOUND")))
    if options.istio_inbound_ports != parsers.ALL:
        for captured in _port_run(options.istio_inbound_ports, lambda ports: _inbound_capture(options, ports)):
            yield PlannedRule(table, "ISTIO_INBOUND", captured)
        return
    ssh = (PortRange(SSH_PORT, SSH_PORT),) if _old(options) else ()
    excluded = (*ssh, *options.istio_local_exclude_ports)
    for spared in _port_run(excluded, lambda ports: (_rule(IS_TCP, ports, to=RETURN),)):
        yield PlannedRule(table, "ISTIO_INBOUND", spared)
    for rule in _inbound_capture(options, None):
        yield PlannedRule(table, "ISTIO_INBOUND", rule)


def _inbound_capture(options: Options, ports: DestinationPorts | None) -> tuple[Rule, ...]:
    if not uses_tproxy(options):
        return (_rule(IS_TCP, ports, to=Jump("ISTIO_IN_REDIRECT")),)
    from istio_init.model.extensions import CtState

    # Packets of a connection that a socket has already: mark and deliver, no second look for a listener.
    known = CtState(("RELATED", "ESTABLISHED"))
    return (
        _rule(IS_TCP, ports, known, to=Jump("ISTIO_DIVERT")),
        _rule(IS_TCP, ports, to=Jump("ISTIO_TPROXY")),
    )


def _tproxy_chains(options: Options, family: Family) -> Iterator[PlannedRule]:
    from istio_init.model.extensions import SetMark, Tproxy

    mark = options.istio_inbound_tproxy_mark
    nowhere = bytes(4 if family == IPV4 else 16)
    target = Tproxy(options.inbound_capture_port, nowhere, mark)
    not_loopback = Destination(loopback(options, family), negated=True)
    yield PlannedRule("mangle", "ISTIO_DIVERT", _rule(to=SetMark(mark)))
    yield PlannedRule("mangle", "ISTIO_DIVERT", _rule(to=ACCEPT))
    yield PlannedRule("mangle", "ISTIO_TPROXY", _rule(not_loopback, IS_TCP, to=target))


def outbound_entry(options: Options, family: Family) -> Iterator[PlannedRule]:
    """The way into ISTIO_OUTPUT, excluded ports, and rule 1: Envoy to its own app, or it would meet rule 2 and loop."""
    yield PlannedRule("nat", "OUTPUT", _rule(IS_TCP if looks_at_tcp_alone(options) else None, to=Jump("ISTIO_OUTPUT")))
    excluded = options.istio_local_outbound_ports_exclude
    for spared in _port_run(excluded, lambda ports: tuple(_rule(each, ports, to=RETURN) for each in (IS_TCP, IS_UDP))):
        yield PlannedRule("nat", "ISTIO_OUTPUT", spared)
    yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(Source(PASSTHROUGH[family]), BY_LO, to=RETURN))


def proxy_identities(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Rules 2 to 7, for each uid, then for each gid of the proxy."""
    names_loopback = options.istio_service_cidr != parsers.ALL and any(
        map(parsers.is_loopback, options.istio_service_cidr)
    )
    dns = captures_dns(options)
    not_loopback = Destination(loopback(options, family), negated=True)
    for owner in _owners(options):
        # The proxy calling a service that lives in this pod comes back in as inbound traffic.
        matches = (not_loopback, BY_LO, *_self_call_ports(options, owner, dns=dns), owner)
        yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(*matches, to=Jump("ISTIO_IN_REDIRECT")))
        # The app calling itself is nobody's business, but for DNS over TCP and where -i asks for loopback.
        if not names_loopback:
            not_dns = (IS_TCP, _port(DNS_PORT, negated=True)) if dns else ()
            yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(BY_LO, *not_dns, owner.replace(negated=True), to=RETURN))
        yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(owner, to=RETURN))


def _self_call_ports(options: Options, owner: Owner, *, dns: bool) -> tuple[Match, ...]:
    """What rules 2 and 5 say of ports: not the tunnel's, and with DNS capture not 53, but that by uid alone."""
    if _old(options):
        return (IS_TCP, _port(DNS_PORT, negated=True)) if dns and owner.kind == "uid" else ()
    tunnel = options.inbound_tunnel_port
    if dns and owner.kind == "uid":
        from istio_init.model.extensions import Multiport

        spared = (PortRange(DNS_PORT, DNS_PORT), PortRange(tunnel, tunnel))
        return IS_TCP, Multiport("dports", spared, negated=True)
    return IS_TCP, _port(tunnel, negated=True)


def owner_groups(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """Applications that are left alone, or that alone are captured, told by their groups."""
    included = options.istio_outbound_owner_groups
    if included == parsers.ALL:
        for gid in options.istio_outbound_owner_groups_exclude:
            yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(Owner("gid", gid, gid), to=RETURN))
        return
    none_of_them = (Owner("gid", gid, gid, negated=True) for gid in included)
    yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(*none_of_them, to=RETURN))


def dns_capture(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Queries go to the agent; zones keep conntrack from taking the agent's query for the application's."""
    if not captures_dns(options):
        return
    servers = _of_family(options.dns_servers or (), family)
    # None stands for any server.
    destinations = (None,) if options.capture_all_dns else tuple(map(Destination, servers))
    yield PlannedRule("raw", "OUTPUT", _rule(to=Jump("ISTIO_OUTPUT_DNS")))
    if destinations:
        yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(to=Jump("ISTIO_OUTPUT_DNS")))
    agent = Redirect(PortRange(AGENT_DNS_PORT, AGENT_DNS_PORT))
    for protocol in (IS_TCP, IS_UDP):
        for destination in destinations:
            yield PlannedRule("nat", "ISTIO_OUTPUT_DNS", _rule(destination, protocol, _port(DNS_PORT), to=agent))
    yield from _dns_zones(options, destinations)


def _dns_zones(options: Options, destinations: tuple[Destination | None, ...]) -> Iterator[PlannedRule]:
    from istio_init.model.extensions import CtZone

    answer_by_agent = SourcePorts(PortRange(AGENT_DNS_PORT, AGENT_DNS_PORT))
    answer = SourcePorts(PortRange(DNS_PORT, DNS_PORT))
    for owner in _owners(options):
        yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", _rule(IS_UDP, _port(DNS_PORT), owner, to=CtZone(PROXY_ZONE)))
        yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", _rule(IS_UDP, answer_by_agent, owner, to=CtZone(APP_ZONE)))
    if destinations:
        yield PlannedRule("raw", "PREROUTING", _rule(to=Jump("ISTIO_INBOUND")))
    for destination in destinations:
        source = Source(destination.network) if destination else None
        yield PlannedRule("raw", "ISTIO_OUTPUT_DNS", _rule(destination, IS_UDP, _port(DNS_PORT), to=CtZone(APP_ZONE)))
        yield PlannedRule("raw", "ISTIO_INBOUND", _rule(source, IS_UDP, answer, to=CtZone(PROXY_ZONE)))


def outbound(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Rules 8 and 9: loopback and excluded ranges are left alone; of the rest, what -q and -i say goes to Envoy."""
    to_envoy = Jump("ISTIO_REDIRECT")
    excluded = _of_family(options.istio_service_exclude_cidr, family)
    for part in (
        *_network_runs(_behind(loopback(options, family), excluded), RETURN),
        *_port_run(options.istio_outbound_ports, lambda ports: (_rule(IS_TCP, ports, to=to_envoy),)),
    ):
        yield PlannedRule("nat", "ISTIO_OUTPUT", part)
    if options.istio_service_cidr == parsers.ALL:
        yield PlannedRule("nat", "ISTIO_OUTPUT", _rule(to=to_envoy))
        destinations: tuple[Destination | None, ...] = (None,)
    else:
        networks = _of_family(options.istio_service_cidr, family)
        for part in _network_runs(networks, to_envoy):
            yield PlannedRule("nat", "ISTIO_OUTPUT", part)
        destinations = tuple(map(_to, networks)) if options.kube_virt_interfaces else ()
    for destination in destinations:
        for name in options.kube_virt_interfaces:
            yield PlannedRule("nat", "PREROUTING", _rule(destination, InInterface(name), to=to_envoy), at=1)


def tproxy_marks(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Envoy's packets back to the client find their way by mark; the proxy's own calls to the pod are told by 1338.

    Stands even where no inbound port is captured, as Istio has it.
    """
    if not uses_tproxy(options):
        return
    from istio_init.model.extensions import ConnMark, Mark, RestoreMark, SaveMark, SetMark

    mark = Mark(options.istio_inbound_tproxy_mark)
    outbound_mark = parsers.OUTBOUND_MARK
    not_loopback = Destination(loopback(options, family), negated=True)
    yield PlannedRule("mangle", "PREROUTING", _rule(IS_TCP, mark, to=SaveMark()))
    yield PlannedRule("mangle", "OUTPUT", _rule(BY_LO, IS_TCP, mark, to=RETURN))
    for owner in _owners(options):
        yield PlannedRule("mangle", "OUTPUT", _rule(not_loopback, BY_LO, IS_TCP, owner, to=SetMark(outbound_mark)))
    yield PlannedRule("mangle", "OUTPUT", _rule(IS_TCP, ConnMark(mark.value), to=RestoreMark()))
    first = (
        _rule(IS_TCP, mark, to=RETURN),
        _rule(Source(PASSTHROUGH[family]), FROM_LO, IS_TCP, to=RETURN),
        _rule(FROM_LO, IS_TCP, Mark(outbound_mark, negated=True), to=RETURN),
    )
    for at, rule in enumerate(first, 1):
        yield PlannedRule("mangle", "ISTIO_INBOUND", rule, at=at)


# In the order in which Istio takes them; within a chain the first match decides.
CONCERNS: tuple[Callable[[Options, Family], Iterator[PlannedRule]], ...] = (
    exclude_interfaces,
    virtual_machine_interfaces,
    drop_invalid,
    redirect_chains,
    inbound,
    outbound_entry,
    proxy_identities,
    owner_groups,
    dns_capture,
    outbound,
    tproxy_marks,
)
