"""The subject of a verb: the plan that its options mean, or, with --live, the rules in a namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.input_file import read
from istio_init.cli.pod_owners import pod_owners
from istio_init.errors_rare import OptionError, SaveError, UsageError
from istio_init.formats.dump_reader import read_dump
from istio_init.kernel.host import container_files, containers
from istio_init.kernel.netlink.route_lookup import RouteLookup
from istio_init.kernel.probe.facts import switched_on
from istio_init.log import Log
from istio_init.model import parsers
from istio_init.model.packet import Facts, Packet
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import FAMILIES, IPV4, IPV6, LOOPBACK_INTERFACE, TCP, Network, Ruleset
from istio_init.planning.plan import build
from istio_init.record import Record
from istio_init.runner import access, backends
from istio_init.runner.defaults import resolve_defaults
from istio_init.simulate.path import proxy

if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family
    from istio_init.options.table import Options
    from istio_init.simulate.path import Proxy

# A pod's addresses where none are given: those reserved for documentation (RFC 5737, RFC 3849).
POD = {
    "ipv4": Network(bytes([192, 0, 2, 10]), 24),
    "ipv6": Network(bytes.fromhex("20010db8") + bytes(11) + b"\x0a", 64),
}
LOOPBACK = {"ipv4": Network(b"\x7f\0\0\1", 8), "ipv6": Network(bytes(15) + b"\1", 128)}
UPLINK = "eth0"
# A host that no namespace knows (RFC 5737, RFC 3849).
ELSEWHERE = {IPV4: bytes([198, 51, 100, 7]), IPV6: bytes.fromhex("20010db80001") + bytes(9) + b"\7"}

# Bytes.
LONGEST_DUMP = 64 << 20

# The parameters of verbs that read a namespace.
Live = Annotated[bool, typer.Option("--live", help="Look at what the kernel holds, as this verb does anyway.")]
Pid = Annotated[int | None, typer.Option(metavar="PID", help="Look in this process' namespace.")]
Container = Annotated[str | None, typer.Option(metavar="ID", help="Look in this container's namespace.")]


FromSave = Annotated[
    str,
    typer.Option(
        "--from-save", metavar="FILE|-", help="Take the rules from what iptables-save or nft list ruleset printed."
    ),
]


class Where(Record):
    """Where to look: at the plan, or (live) in the namespace of a process, of a container, or the caller's.

    The options name a path, --network-namespace. A place that is named means live. `save` names a file with a dump of
    rules, - for standard input.
    """

    live: bool = False
    pid: int | None = None
    container: str | None = None
    save: str = ""


class Subject(Record):
    """Rules, routing and proxy to ask about; `options` have their defaults.

    `live` says that the rules are the kernel's, `saved` that they are those of a dump.
    """

    options: Options
    rulesets: tuple[Ruleset, ...]
    facts: Facts
    envoy: Proxy
    live: bool
    saved: bool = False

    @property
    def given(self) -> bool:
        """Whether the rules are others than the plan's: the kernel's, or a dump's."""
        return self.live or self.saved

    def ruleset(self, family: Family) -> Ruleset:
        """The rules of one family, empty where there are none."""
        return next((ruleset for ruleset in self.rulesets if ruleset.family == family), Ruleset(family, ()))


def subject(options: Options, where: Where, addresses: tuple[Address, ...] = ()) -> Subject:
    """What the options and --live mean. `addresses` are further ones of the pod's; a live look finds its own.

    UsageError where the places contradict each other, KernelError where the kernel can't be read.
    """
    log = Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    _one_place(options, where)
    if where.save:
        require_no_place(options, live=is_live(options, where))
        return _saved(options, where.save, addresses, log)
    return _live(options, where, log) if is_live(options, where) else _planned(options, addresses, log)


def is_live(options: Options, where: Where) -> bool:
    """Whether the kernel's rules are meant, and not the plan's."""
    return where.live or bool(options.network_namespace) or (where.pid, where.container) != (None, None)


def placed(options: Options, where: Where) -> Options:
    """The options with the namespace of the place that is named, and its nameservers; as they are where none is.

    UsageError where several are named or a name is empty, KernelError where there is no such process or container.
    """
    _one_place(options, where)
    pid = where.pid if where.container is None else containers.pid_of(where.container)
    if pid is None:
        return options
    options = options.replace(network_namespace=containers.namespace_path(pid))
    if options.redirect_dns and options.dns_servers is None and not (options.capture_all_dns or options.cni_mode):
        # The pod's: the resolv.conf of the caller may be the node's.
        options = options.replace(dns_servers=container_files.nameservers(pid))
    return options


def _one_place(options: Options, where: Where) -> None:
    if where.container is not None and not where.container.strip():
        # Such as an unset variable's: the caller's own namespace is not what the user means.
        raise OptionError(
            "--container", where.container, "empty: name one, or leave the flag out for the namespace of this process"
        )
    places = [where.pid, where.container, options.network_namespace or None]
    if places.count(None) < len(places) - 1:
        raise UsageError("--pid, --container, --network-namespace: name one place")


def _planned(options: Options, addresses: tuple[Address, ...], log: Log) -> Subject:
    if pod_owners.get() and options.redirect_dns and options.dns_servers is None and not options.capture_all_dns:
        log.warn("the manifest does not name the pod's DNS servers; this machine's are used: name them: --dns-servers")
    options = resolve_defaults(options, log)
    plan = build(options)
    own = tuple(Address(LOOPBACK[family], LOOPBACK_INTERFACE) for family in FAMILIES)
    facts = Facts((*own, *plan.addresses, *addresses), plan.policy_rules, plan.routes, UPLINK)
    return Subject(options, plan.rulesets, facts, proxy(options), live=False)


def require_no_place(options: Options, *, live: bool = False) -> None:
    """UsageError where a namespace is named beside a dump."""
    if live or options.network_namespace:
        raise UsageError("--from-save: the rules are in the file: leave out --live and what names a namespace")


def saved_rules(path: str) -> tuple[Ruleset, ...]:
    """The rulesets of a dump. OptionError where it can't be read."""
    try:
        return read_dump(read("--from-save", path, LONGEST_DUMP, "dump of rules"))
    except SaveError as error:
        raise OptionError("--from-save", path, str(error)) from None


def _saved(options: Options, path: str, addresses: tuple[Address, ...], log: Log) -> Subject:
    rulesets = saved_rules(path)
    if options.enable_ipv6 is None:
        options = options.replace(enable_ipv6=any(ruleset.family == IPV6 for ruleset in rulesets))
    about = _planned(options, addresses, log)
    return about.replace(rulesets=rulesets, saved=True)


def _live(options: Options, where: Where, log: Log) -> Subject:
    options = placed(options, where)
    with access.namespace(options):
        options = resolve_defaults(options, log)
        firewall = backends.firewall(options)
        # Native nftables' sets are expanded to the rules that these options would make.
        planned = build(options)
        rulesets = tuple(firewall.read(family, planned.ruleset(family)) for family in FAMILIES)
        for name, other in backends.others(options, firewall, backends.tables()):
            # The native tables are Istio's alone.
            if name != "native":
                rulesets = tuple(_beside(ruleset, other.read(ruleset.family), name) for ruleset in rulesets)
        facts = with_lookup(live_facts())
    return Subject(options, rulesets, facts, proxy(options), live=True)


def _beside(ruleset: Ruleset, other: Ruleset, backend: str) -> Ruleset:
    """The rules with those of another backend's tables, which see the same packets; empty ones are left out."""
    further = tuple(
        table.replace(name=f"{table.name} ({backend})")
        for table in other.tables
        if any(chain.parts or chain.policy == "DROP" for chain in table.chains)
    )
    return ruleset.replace(tables=(*ruleset.tables, *further)) if further else ruleset


def with_lookup(facts: Facts) -> Facts:
    """The facts with the kernel's own routes, and as the uplink the interface of its default route, if it has one."""
    lookup = RouteLookup()
    for family in FAMILIES:
        packet = Packet("OUTPUT", TCP, bytes(len(ELSEWHERE[family])), ELSEWHERE[family])
        if (hop := lookup.sent(packet, local_source=False)) and hop.device:
            return facts.replace(lookup=lookup, uplink=hop.device)
    return facts.replace(lookup=lookup)


def live_facts() -> Facts:
    """What routing of the calling thread's namespace knows. KernelError where it can't be read."""
    router = access.router()
    return _facts(router.addresses(), router.read())


def _facts(addresses: tuple[Address, ...], routing: tuple[RoutingEntry, ...]) -> Facts:
    uplink = next((each.device for each in addresses if each.device != LOOPBACK_INTERFACE), UPLINK)
    rules = tuple(entry for entry in routing if isinstance(entry, PolicyRule))
    routes = tuple(entry for entry in routing if isinstance(entry, Route))
    return Facts(addresses, rules, routes, uplink, switched_on("accept_local"), switched_on("route_localnet"))


def pod_addresses(given: str, interface: str = UPLINK) -> tuple[Address, ...]:
    """The pod's addresses: a comma list, or one of each family reserved for documentation. OptionError if bad."""
    try:
        networks = parsers.addresses(given) if given else tuple(POD.values())
    except ValueError as error:
        raise OptionError("--pod-address", given, str(error)) from None
    return tuple(Address(network, interface) for network in networks)
