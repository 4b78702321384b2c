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

With TPROXY, inbound traffic is captured in mangle instead (ISTIO_INBOUND ──► ISTIO_DIVERT or ISTIO_TPROXY), by mark
and policy route. With DNS capture ISTIO_OUTPUT goes through ISTIO_OUTPUT_DNS before rule 8, and raw puts the
two legs of each query into separate conntrack zones.

Those of TPROXY and of DNS are in capture_tproxy.py and capture_dns.py, which other runs do not import.

Each concern states beside a rule what it is for and which flags made it; simulate/purposes.py turns that into text.

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
    Table,
    Verdict,
    jumps,
    ordered,
)
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from istio_init.model.rules import Family, Match, TableName, Target
    from istio_init.options.table import Options

    # Why a rule exists: its purpose (in which {options.FIELD} names an option's value), the flags that made it
    # (separated by blanks; none where it always exists), and where the article numbers ISTIO_OUTPUT's rules and its
    # own steps, those. A constant, so that it costs a run nothing: no text is made before it is needed.
    Why: TypeAlias = tuple[str, str] | tuple[str, str, str, str]
    Concern: TypeAlias = Callable[[Options, Family], Iterator["PlannedRule"]]

DNS_PORT = 53
# Where Istio's agent answers DNS queries.
AGENT_DNS_PORT = 15053
# What Envoy binds its connections to the app to (InboundPassthroughBindIpv4 and v6 in Istio).
PASSTHROUGH = {IPV4: Network(b"\x7f\0\0\6", 32), IPV6: Network(bytes(15) + b"\6", 128)}
IPV6_LOOPBACK = Network(bytes(15) + b"\1", 128)
SSH_PORT = 22
# Steps that several reasons name.
INBOUND_STEPS = "1 to 4"

RETURN, ACCEPT, DROP = Verdict("RETURN"), Verdict("ACCEPT"), Verdict("DROP")
IS_TCP, IS_UDP = Protocol(TCP), Protocol(UDP)
BY_LO, FROM_LO = OutInterface(LOOPBACK_INTERFACE), InInterface(LOOPBACK_INTERFACE)


class PlannedRule(Record):
    """A rule, or a run of them, with its reason and its place: appended to the chain, or, with `at`, inserted.

    `why` is one reason, or, for a run whose unit has several rules, one for each. `at` is a position from 1; only
    rules that were inserted earlier may precede it.
    """

    table: TableName
    chain: str
    part: Rule | Run
    why: Why | tuple[Why, ...] = ()
    at: int = 0

    @property
    def rule(self) -> Rule:
        """The rule; of a run, the first."""
        return self.part.unit[0] if isinstance(self.part, Run) else self.part

    def expanded(self) -> Iterator[PlannedRule]:
        """One planned rule for each rule of a run, each with its own reason."""
        if not isinstance(self.part, Run):
            return iter((self,))
        whys: Any = self.why if self.why and isinstance(self.why[0], tuple) else (self.why,)
        rules = enumerate(self.part.rules())
        return (self.replace(part=rule, why=whys[number % len(whys)]) for number, rule in rules)


def capture(options: Options, family: Family) -> Ruleset:
    """The desired rules of one address family."""
    chains: dict[TableName, dict[str, Chain]] = {}
    for table, planned in _grouped(options, family).items():
        chains[table] = {name: _chain(table, name, rules, options) for name, rules in planned.items()}
        for chain in tuple(chains[table].values()):
            for name in jumps(chain):
                chains[table].setdefault(name, Chain(name, ()))
    names = [table for table in BUILTIN_CHAINS if table in chains]
    return Ruleset(family, tuple(Table(table, ordered(table, chains[table])) for table in names))


def _grouped(options: Options, family: Family) -> dict[TableName, dict[str, list[PlannedRule]]]:
    """The rules of all concerns by table and chain, in the order in which the concerns yield them."""
    grouped: dict[TableName, dict[str, list[PlannedRule]]] = {}
    for concern in CONCERNS:
        for planned in rules_of(concern, options, family):
            chains = grouped.get(planned.table) or grouped.setdefault(planned.table, {})
            (chains.get(planned.chain) or chains.setdefault(planned.chain, [])).append(planned)
    return grouped


def rules_of(concern: Concern, options: Options, family: Family) -> Iterator[PlannedRule]:
    """The rules of a concern, with comments if --rule-comments says so."""
    planned = concern(options, family)
    if not options.rule_comments:
        return planned
    from istio_init.planning.rule_comments import with_comments

    return with_comments(planned, options)


def _chain(table: TableName, name: str, rules: list[PlannedRule], options: Options) -> Chain:
    # Positions of insertions count from the top, so rules that were appended earlier make no difference.
    parts = [rule.part for rule in rules if not rule.at]
    inserted = [rule for rule in rules if rule.at]
    for rule in inserted:
        parts.insert(rule.at - 1, rule.part)
    if name not in BUILTIN_CHAINS[table]:
        return Chain.of(name, tuple(parts))
    first = (
        sum(len(each) if isinstance(each, Run) else 1 for each in parts) + 1 if options.insert_jumps else len(inserted)
    )
    return Chain.of(name, tuple(parts), "ACCEPT", first)


def istio_rule(*matches: Match | None, to: Target) -> Rule:
    """An Istio rule; matches that are None are left out."""
    return Rule(tuple(filter(None, matches)), to, True)


def _port_run(ports: tuple[PortRange, ...], unit: Callable[[DestinationPorts], tuple[Rule, ...]]) -> tuple[Run, ...]:
    """For each port the rules that `unit` makes; empty without ports."""
    return (Run(unit(DestinationPorts(ports[0], False)), ports),) if ports else ()


def _network_runs(networks: tuple[Network, ...], to: Target) -> tuple[Rule | Run, ...]:
    """A rule to this target for each network."""
    if all(network.prefix for network in networks):
        return (Run((istio_rule(Destination(networks[0], False), to=to),), networks),) if networks else ()
    return tuple(istio_rule(_to(network), to=to) for network in networks)


def _to(network: Network) -> Destination | None:
    """-d NETWORK; None for a network of all addresses: the kernel stores no match for it."""
    return Destination(network, False) if network.prefix else None


def one_port(port: int, *, negated: bool = False) -> DestinationPorts:
    """--dport PORT, or ! --dport PORT."""
    return DestinationPorts(PortRange(port, port), negated)


def proxy_owners(options: Options) -> tuple[Owner, ...]:
    """The identities of the proxy: each uid, then each gid (without --proxy-gid, the uids again)."""
    users = (Owner("uid", uid, uid) for uid in options.proxy_uid)
    return (*users, *(Owner("gid", gid, gid) for gid in options.proxy_groups))


def loopback(options: Options, family: Family) -> Network:
    """The loopback range of a family."""
    return options.istio_outbound_ipv4_loopback_cidr if family == IPV4 else IPV6_LOOPBACK


def uses_tproxy(options: Options) -> bool:
    """Whether inbound traffic is captured with TPROXY, where --istio-inbound-ports captures any."""
    return options.istio_inbound_interception_mode == "TPROXY"


def captures_dns(options: Options) -> bool:
    """Whether DNS is captured: --redirect-dns, and either known servers or --capture-all-dns."""
    return options.redirect_dns and (options.capture_all_dns or bool(options.dns_servers))


def _inbound_table(options: Options) -> TableName:
    return "mangle" if uses_tproxy(options) else "nat"


def of_family(networks: tuple[Network, ...], family: Family) -> tuple[Network, ...]:
    """Those of the networks that are of a family."""
    size = len(PASSTHROUGH[family].address)
    return tuple([network for network in networks if len(network.address) == size])


def _istio_1_13(options: Options) -> bool:
    """Whether --compat-version selects the rules of Istio 1.13."""
    return options.compat_version == "1.13"


def captures_tcp_only(options: Options) -> bool:
    """Whether only TCP enters ISTIO_OUTPUT: in 1.13, unless DNS is captured, whose queries are UDP."""
    return _istio_1_13(options) and not captures_dns(options)


def exclude_interfaces(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001 (all concerns have one shape)
    """Excluded interfaces come first: nothing that crosses them is captured."""
    tables: tuple[TableName, ...] = ("nat", "mangle") if uses_tproxy(options) else ("nat",)
    for table in tables:
        for name in options.istio_exclude_interfaces:
            came = istio_rule(InInterface(name), to=RETURN)
            yield PlannedRule(table, "PREROUTING", came, ("traffic from an excluded interface is not captured", "-c"))
            leaves = istio_rule(OutInterface(name), to=RETURN)
            yield PlannedRule(table, "OUTPUT", leaves, ("traffic to an excluded interface is not captured", "-c"))


def virtual_machine_interfaces(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """Traffic from a virtual machine is not inbound; outbound() inserts its capture before this rule."""
    for name in options.kube_virt_interfaces:
        rule = istio_rule(InInterface(name), to=RETURN)
        yield PlannedRule("nat", "PREROUTING", rule, ("traffic from a virtual machine is not inbound", "-k"), at=1)


def drop_invalid(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """Drop out-of-window packets: the TCP stack does not know their connection and would answer with a reset."""
    if options.drop_invalid:
        from istio_init.model.extensions import CtState

        invalid = istio_rule(CtState(("INVALID",)), to=Jump("ISTIO_DROP"))
        why: Why = ("packets in conntrack state INVALID would be answered with a reset", "--drop-invalid")
        yield PlannedRule("mangle", "PREROUTING", invalid, why)
        yield PlannedRule(
            "mangle", "ISTIO_DROP", istio_rule(to=DROP), ("invalid packets are dropped", "--drop-invalid")
        )


def redirect_chains(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """The two redirections to Envoy, and the tunnel port, on which Envoy listens itself."""
    if not _istio_1_13(options):
        tunnel = istio_rule(IS_TCP, one_port(options.inbound_tunnel_port), to=RETURN)
        why: Why = ("Envoy listens on the port of HBONE tunnels itself; it is not captured", "-e", "", INBOUND_STEPS)
        yield PlannedRule("nat", "ISTIO_INBOUND", tunnel, why)
    why = ("to Envoy's outbound listener, port {options.envoy_port}", "-p", "", "11 to 12")
    yield PlannedRule("nat", "ISTIO_REDIRECT", _redirect(options.envoy_port), why)
    why = ("to Envoy's inbound listener, port {options.inbound_capture_port}", "-z", "", INBOUND_STEPS)
    yield PlannedRule("nat", "ISTIO_IN_REDIRECT", _redirect(options.inbound_capture_port), why)


def _redirect(port: int) -> Rule:
    return istio_rule(IS_TCP, to=Redirect(PortRange(port, port)))


def inbound(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Inbound capture: all ports except the excluded ones, or the listed ports."""
    ports, table = options.istio_inbound_ports, _inbound_table(options)
    if not ports:
        return
    if uses_tproxy(options):
        from istio_init.planning.capture_tproxy import inbound_chains

        yield from inbound_chains(options, family)
    why: Why = ("all inbound TCP traffic enters ISTIO_INBOUND", "-b -m", "", INBOUND_STEPS)
    yield PlannedRule(table, "PREROUTING", istio_rule(IS_TCP, to=Jump("ISTIO_INBOUND")), why)
    why = ("traffic from an excluded source is not captured", "--istio-inbound-exclude-cidr")
    for network in of_family(options.istio_inbound_exclude_cidr, family):
        source = Source(network, False) if network.prefix else None
        yield PlannedRule(table, "ISTIO_INBOUND", istio_rule(source, to=RETURN), why)
    whys = _inbound_reasons(options)
    if ports != parsers.ALL:
        for run in _port_run(ports, lambda each: _inbound_capture(options, each)):
            yield PlannedRule(table, "ISTIO_INBOUND", run, whys)
        return
    if _istio_1_13(options):
        ssh = istio_rule(IS_TCP, one_port(SSH_PORT), to=RETURN)
        why = ("Istio 1.13 does not capture ssh", "--compat-version", "", INBOUND_STEPS)
        yield PlannedRule(table, "ISTIO_INBOUND", ssh, why)
    why = ("an excluded inbound port is not captured", "-d", "", INBOUND_STEPS)
    for run in _port_run(options.istio_local_exclude_ports, lambda each: (istio_rule(IS_TCP, each, to=RETURN),)):
        yield PlannedRule(table, "ISTIO_INBOUND", run, why)
    for rule, why in zip(_inbound_capture(options, None), whys, strict=True):
        yield PlannedRule(table, "ISTIO_INBOUND", rule, why)


def _inbound_capture(options: Options, ports: DestinationPorts | None) -> tuple[Rule, ...]:
    """The rules that capture a port; the reason of each is in _inbound_reasons."""
    if not uses_tproxy(options):
        return (istio_rule(IS_TCP, ports, to=Jump("ISTIO_IN_REDIRECT")),)
    from istio_init.model.extensions import CtState

    # Packets of a connection that has a socket need a mark and no second lookup of a listener.
    established = CtState(("RELATED", "ESTABLISHED"))
    return (
        istio_rule(IS_TCP, ports, established, to=Jump("ISTIO_DIVERT")),
        istio_rule(IS_TCP, ports, to=Jump("ISTIO_TPROXY")),
    )


def _inbound_reasons(options: Options) -> tuple[Why, ...]:
    capture: Why = ("inbound TCP traffic goes to Envoy's inbound listener", "-b", "", INBOUND_STEPS)
    if not uses_tproxy(options):
        return (capture,)
    return ("packets of a connection that already has a socket go to that socket", "-b -m"), capture


def outbound_entry(options: Options, family: Family) -> Iterator[PlannedRule]:
    """The jump to ISTIO_OUTPUT, excluded ports, and rule 1: Envoy to its own app, which would loop by rule 2."""
    entry = istio_rule(IS_TCP if captures_tcp_only(options) else None, to=Jump("ISTIO_OUTPUT"))
    why: Why = ("all outbound traffic enters ISTIO_OUTPUT", "", "", "5 to 6, 9 to 10, 13 to 14")
    yield PlannedRule("nat", "OUTPUT", entry, why)
    excluded = options.istio_local_outbound_ports_exclude
    why = ("an excluded outbound port is not captured", "-o")
    for run in _port_run(
        excluded, lambda ports: tuple(istio_rule(each, ports, to=RETURN) for each in (IS_TCP, IS_UDP))
    ):
        yield PlannedRule("nat", "ISTIO_OUTPUT", run, why)
    why = (
        "Envoy's connections to the app in its own pod come from this address; captured, they would loop",
        "",
        "1",
        "6 to 7",
    )
    yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(Source(PASSTHROUGH[family]), BY_LO, to=RETURN), why)


def proxy_identities(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Rules 2 to 7: three for each uid, then for each gid of the proxy."""
    names_loopback = options.istio_service_cidr != parsers.ALL and any(
        map(parsers.is_loopback, options.istio_service_cidr)
    )
    dns = captures_dns(options)
    not_loopback = Destination(loopback(options, family), negated=True)
    for owner in proxy_owners(options):
        flag, numbers = ("-u", "234") if owner.kind == "uid" else ("-g", "567")
        matches = (not_loopback, BY_LO, *_self_call_ports(options, owner, dns=dns), owner)
        why: Why = ("the proxy calls a service of its own pod: that is inbound traffic", flag, numbers[0], "16")
        yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(*matches, to=Jump("ISTIO_IN_REDIRECT")), why)
        # Except for DNS over TCP, and where -i names loopback.
        if not names_loopback:
            not_dns = (IS_TCP, one_port(DNS_PORT, negated=True)) if dns else ()
            to_itself = istio_rule(BY_LO, *not_dns, owner.replace(negated=True), to=RETURN)
            why = ("traffic from the app to its own pod is not captured", flag, numbers[1], "6 to 7")
            yield PlannedRule("nat", "ISTIO_OUTPUT", to_itself, why)
        why = ("connections of the proxy leave the pod; capturing them would be a loop", flag, numbers[2], "14 to 15")
        yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(owner, to=RETURN), why)


def _self_call_ports(options: Options, owner: Owner, *, dns: bool) -> tuple[Match, ...]:
    """The ports of rules 2 and 5: not the tunnel's, and with DNS capture not 53, but that only by uid."""
    if _istio_1_13(options):
        return (IS_TCP, one_port(DNS_PORT, negated=True)) if dns and owner.kind == "uid" else ()
    tunnel = options.inbound_tunnel_port
    if dns and owner.kind == "uid":
        from istio_init.model.extensions import Multiport

        excluded = (PortRange(DNS_PORT, DNS_PORT), PortRange(tunnel, tunnel))
        return IS_TCP, Multiport("dports", excluded, negated=True)
    return IS_TCP, one_port(tunnel, negated=True)


def ports_excluded_for_users(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """Users whose traffic to some ports is not captured."""
    why: Why = ("traffic of a user to an excluded port is not captured", "--exclude-uids-for-ports")
    for number, ports, users in options.exclude_uids_for_ports:
        protocol = IS_TCP if number == TCP else IS_UDP
        for low, high in users:
            owner = Owner("uid", low, high)
            if not ports:
                yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(protocol, owner, to=RETURN), why)
            for port in ports:
                rule = istio_rule(protocol, DestinationPorts(port, False), owner, to=RETURN)
                yield PlannedRule("nat", "ISTIO_OUTPUT", rule, why)


def owner_groups(options: Options, family: Family) -> Iterator[PlannedRule]:  # noqa: ARG001
    """Groups whose traffic is not captured, or the only groups whose traffic is."""
    included = options.istio_outbound_owner_groups
    if included == parsers.ALL:
        why: Why = ("traffic of an excluded group is not captured", "--istio-outbound-owner-groups-exclude")
        for gid in options.istio_outbound_owner_groups_exclude:
            yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(Owner("gid", gid, gid), to=RETURN), why)
        return
    none_of_them = (Owner("gid", gid, gid, negated=True) for gid in included)
    why = ("only traffic of the listed groups is captured", "--istio-outbound-owner-groups")
    yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(*none_of_them, to=RETURN), why)


def dns_capture(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Redirect DNS queries to the agent."""
    if captures_dns(options):
        from istio_init.planning.capture_dns import queries

        yield from queries(options, family)


def outbound(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Rules 8 and 9: loopback and excluded ranges are not captured; of the rest, what -q and -i select is."""
    to_envoy = Jump("ISTIO_REDIRECT")
    why: Why = ("traffic to the loopback address is not captured", "--istio-outbound-ipv4-loopback-cidr", "8", "")
    yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(_to(loopback(options, family)), to=RETURN), why)
    why = ("an excluded destination is not captured", "-x")
    for part in _network_runs(of_family(options.istio_service_exclude_cidr, family), RETURN):
        yield PlannedRule("nat", "ISTIO_OUTPUT", part, why)
    why = ("a port that is captured for every destination", "-q", "", "10 to 11")
    for run in _port_run(options.istio_outbound_ports, lambda ports: (istio_rule(IS_TCP, ports, to=to_envoy),)):
        yield PlannedRule("nat", "ISTIO_OUTPUT", run, why)
    everything: Why = ("all other outbound traffic goes to Envoy's outbound listener", "-i", "9", "10 to 11")
    if options.istio_service_cidr == parsers.ALL:
        yield PlannedRule("nat", "ISTIO_OUTPUT", istio_rule(to=to_envoy), everything)
        destinations: tuple[Destination | None, ...] = (None,)
    else:
        networks = of_family(options.istio_service_cidr, family)
        why = ("a captured destination", "-i", "9", "10 to 11")
        for part in _network_runs(networks, to_envoy):
            # For 0.0.0.0/0 it is the same rule as for *, and with --rule-comments the comment is part of it.
            yield PlannedRule("nat", "ISTIO_OUTPUT", part, why if isinstance(part, Run) or part.matches else everything)
        destinations = tuple(map(_to, networks)) if options.kube_virt_interfaces else ()
    why = ("traffic from a virtual machine is outbound, and goes to Envoy's outbound listener", "-k -i")
    for destination in destinations:
        for name in options.kube_virt_interfaces:
            rule = istio_rule(destination, InInterface(name), to=to_envoy)
            yield PlannedRule("nat", "PREROUTING", rule, why, at=1)


def tproxy_marks(options: Options, family: Family) -> Iterator[PlannedRule]:
    """What TPROXY needs beside inbound capture; Istio writes it even where no inbound port is captured."""
    if uses_tproxy(options):
        from istio_init.planning.capture_tproxy import marks

        yield from marks(options, family)


# In Istio's order; within a chain the first match decides.
CONCERNS: tuple[Concern, ...] = (
    exclude_interfaces,
    virtual_machine_interfaces,
    drop_invalid,
    redirect_chains,
    inbound,
    outbound_entry,
    proxy_identities,
    ports_excluded_for_users,
    owner_groups,
    dns_capture,
    outbound,
    tproxy_marks,
)
