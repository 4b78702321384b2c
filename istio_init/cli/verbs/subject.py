"""The rules that a verb inspects: the plan's, those in a namespace (--live), or those of a dump (--from-save)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.input_file import read
from istio_init.cli.pod_owners import pod_ips, pod_owners, with_ipv6
from istio_init.cli.verbs import live_options, subject_ebpf
from istio_init.errors_rare import OptionError, SaveError, UsageError
from istio_init.formats.dump_reader import read_dump
from istio_init.formats.ip_sets import ip_sets
from istio_init.formats.nft import foreign_dump
from istio_init.kernel.host import container_files, containers
from istio_init.kernel.netlink.ip_sets import saved_sets
from istio_init.kernel.netlink.masked_rules import masked_rules
from istio_init.kernel.netlink.route_lookup import RouteLookup
from istio_init.kernel.nft.foreign_tables import foreign_tables
from istio_init.kernel.probe.facts import switched_on
from istio_init.log import Log
from istio_init.model import parsers
from istio_init.model.foreign import HookedTable
from istio_init.model.packet import Facts, Packet
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import FAMILIES, IPV4, IPV6, LOOPBACK_INTERFACE, TCP, Network, Ruleset
from istio_init.model.unknown import UnknownMatch
from istio_init.planning.plan import build
from istio_init.record import Record
from istio_init.runner import access, backends
from istio_init.runner.defaults import resolve_defaults
from istio_init.simulate.path import proxy

if TYPE_CHECKING:
    from istio_init.model.ip_sets import IpSet
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family
    from istio_init.options.table import Options
    from istio_init.simulate.path import Proxy

# A pod's default addresses, reserved for documentation (RFC 5737, RFC 3849).
POD = {
    "ipv4": Network(bytes([192, 0, 2, 10]), 24),
    "ipv6": Network(bytes.fromhex("20010db8") + bytes(11) + b"\x0a", 64),
}
LOOPBACK = {"ipv4": Network(b"\x7f\0\0\1", 8), "ipv6": Network(bytes(15) + b"\1", 128)}
UPLINK = "eth0"
# A remote host, with addresses reserved for documentation.
ELSEWHERE = {IPV4: bytes([198, 51, 100, 7]), IPV6: bytes.fromhex("20010db80001") + bytes(9) + b"\7"}

# Bytes.
LONGEST_DUMP = 64 << 20

# The parameters of verbs that read a namespace.
Live = Annotated[bool, typer.Option("--live", help="Read the rules in the kernel; this verb always does.")]
Pid = Annotated[int | None, typer.Option(metavar="PID", help="Use this process's namespace.")]
Container = Annotated[str | None, typer.Option(metavar="ID", help="Use this container's namespace.")]
FromSave = Annotated[
    str,
    typer.Option(
        "--from-save", metavar="FILE|-", help="Read the rules from the output of iptables-save or nft list ruleset."
    ),
]


class Where(Record):
    """Where the rules come from: the plan, or (live) the namespace of a process, of a container, or the caller's.

    The path of a namespace is in the options (--network-namespace). Naming a namespace implies live. `save` names a
    file with a dump of rules, - for standard input.
    """

    live: bool = False
    pid: int | None = None
    container: str | None = None
    save: str = ""


class Subject(Record):
    """The rules, routing and proxy that a verb inspects; defaults of `options` are resolved.

    `live` means that the rules are the kernel's, `saved` that they come from a dump.
    """

    options: Options
    rulesets: tuple[Ruleset, ...]
    facts: Facts
    envoy: Proxy
    live: bool
    saved: bool = False

    @property
    def has_existing_rules(self) -> bool:
        """Whether the rules come from the kernel or a dump, and may differ from the plan's."""
        return self.live or self.saved

    def ruleset(self, family: Family) -> Ruleset:
        """The rules of one family, empty where there are none."""
        return next((ruleset for ruleset in self.rulesets if ruleset.family == family), Ruleset(family, ()))


def subject(
    options: Options, where: Where, addresses: tuple[Address, ...] = (), *, with_foreign_tables: bool = False
) -> Subject:
    """The subject of these options. `addresses` are further addresses of the pod; with --live they are the kernel's.

    UsageError if the flags name several namespaces, KernelError if the kernel can't be read.
    """
    log = Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    _one_place(options, where)
    if options.capture_backend == "ebpf":
        if where.save:
            raise UsageError("--from-save: a dump of rules does not show capture by eBPF; name the pod: --netns PATH")
        subject_ebpf.require_supported(options)
        log.info(subject_ebpf.NOTE)
    if where.save:
        require_no_place(options, live=is_live(options, where))
        return _saved(options, where.save, addresses, log, with_foreign_tables=with_foreign_tables)
    if is_live(options, where):
        return _live(options, where, log, with_foreign_tables=with_foreign_tables)
    return _planned(options, addresses, log)


def is_live(options: Options, where: Where) -> bool:
    """Whether the flags select the kernel's rules instead of the plan's."""
    return where.live or bool(options.network_namespace) or (where.pid, where.container) != (None, None)


def placed(options: Options, where: Where) -> Options:
    """The options with the path of the namespace that --pid or --container names, and its nameservers.

    UsageError for several namespaces or an empty name, KernelError if there is no such process or container.
    """
    _one_place(options, where)
    pid = where.pid if where.container is None else containers.pid_of(where.container)
    if pid is None:
        return options
    options = options.replace(network_namespace=containers.namespace_path(pid))
    if options.lacks_nameservers:
        # The pod's nameservers: the caller's resolv.conf may be the node's.
        options = options.replace(dns_servers=container_files.nameservers(pid))
    return options


def _one_place(options: Options, where: Where) -> None:
    if where.container is not None and not where.container.strip():
        # An unset shell variable, for example: the user does not mean the caller's own namespace.
        raise OptionError(
            "--container", where.container, "empty: name one, or leave the flag out for the namespace of this process"
        )
    places = [where.pid, where.container, options.network_namespace or None]
    if places.count(None) < len(places) - 1:
        raise UsageError("--pid, --container, --network-namespace: use only one of them")


def _planned(options: Options, addresses: tuple[Address, ...], log: Log) -> Subject:
    if pod_owners.get() and options.lacks_nameservers:
        log.warn("the manifest does not name the pod's DNS servers; this machine's are used: name them: --dns-servers")
    options = resolve_defaults(with_ipv6(options, default=None), log)
    plan = build(options)
    own = tuple(Address(LOOPBACK[family], LOOPBACK_INTERFACE) for family in FAMILIES)
    facts = Facts((*own, *plan.addresses, *addresses), plan.policy_rules, plan.routes, UPLINK)
    return Subject(options, plan.rulesets, facts, proxy(options), live=False)


def require_no_place(options: Options, *, live: bool = False) -> None:
    """UsageError if a namespace is named as well as a dump."""
    if live or options.network_namespace:
        raise UsageError("--from-save: reads the rules from a file: leave out --live and flags that name a namespace")


def _used(text: str, rulesets: tuple[Ruleset, ...]) -> tuple[IpSet, ...]:
    """The IP sets of `ipset save`, if a rule asks for one."""
    uses_sets = any(
        isinstance(match, UnknownMatch) and match.name == "set"
        for ruleset in rulesets
        for table in ruleset.tables
        for chain in table.chains
        for rule in chain.rules
        for match in rule.matches
    )
    return ip_sets(text) if uses_sets else ()


def saved_rules(path: str, *, with_foreign_tables: bool = False) -> tuple[Ruleset, ...]:
    """The rulesets of a dump. OptionError if it can't be read."""
    return _read_dump(path, with_foreign_tables=with_foreign_tables)[0]


def _read_dump(path: str, *, with_foreign_tables: bool) -> tuple[tuple[Ruleset, ...], tuple[IpSet, ...]]:
    """The rulesets of a dump, and the IP sets that `ipset save` prints, if they are in it as well."""
    try:
        text = read("--from-save", path, LONGEST_DUMP, "dump of rules")
        rulesets = read_dump(text)
    except SaveError as error:
        raise OptionError("--from-save", path, str(error)) from None
    sets = _used(text, rulesets)
    if not with_foreign_tables:
        return rulesets, sets
    return tuple(
        each.replace(tables=(*each.tables, *foreign_dump.foreign_tables(text, each.family))) for each in rulesets
    ), sets


def _saved(
    options: Options, path: str, addresses: tuple[Address, ...], log: Log, *, with_foreign_tables: bool
) -> Subject:
    rulesets, sets = _read_dump(path, with_foreign_tables=with_foreign_tables)
    options = live_options.resolved(options, log, tuple(map(_without_foreign, rulesets)))
    if options.enable_ipv6 is None:
        options = options.replace(enable_ipv6=any(ruleset.family == IPV6 for ruleset in rulesets))
    about = _planned(options, addresses, log)
    facts = about.facts.replace(ip_sets=sets)
    return about.replace(rulesets=rulesets, facts=facts, saved=True)


def _without_foreign(ruleset: Ruleset) -> Ruleset:
    return ruleset.replace(tables=tuple(each for each in ruleset.tables if not isinstance(each, HookedTable)))


def _live(options: Options, where: Where, log: Log, *, with_foreign_tables: bool) -> Subject:
    options = live_options.resolved(placed(options, where), log)
    if options.capture_backend == "ebpf":
        options, rulesets = subject_ebpf.captured(options, log)
        with access.namespace(options):
            return _with_facts(resolve_defaults(options, log), rulesets)
    with access.namespace(options):
        options = resolve_defaults(options, log)
        firewall = backends.firewall(options)
        # The sets of native nftables are expanded to the rules of these options' plan.
        planned = build(options)
        rulesets = tuple(firewall.read(family, planned.ruleset(family)) for family in FAMILIES)
        for name, other in backends.others(options, firewall, backends.tables()):
            # The native tables contain only Istio rules.
            if name != "native":
                rulesets = tuple(_beside(ruleset, other.read(ruleset.family), name) for ruleset in rulesets)
        if with_foreign_tables:
            rulesets = tuple(
                ruleset.replace(tables=(*ruleset.tables, *foreign_tables(ruleset.family))) for ruleset in rulesets
            )
        return _with_facts(options, rulesets)


def _with_facts(options: Options, rulesets: tuple[Ruleset, ...]) -> Subject:
    """The subject with these rules in the calling thread's namespace."""
    facts = with_lookup(live_facts().replace(masked_rules=masked_rules(), ip_sets=_used(saved_sets(), rulesets)))
    return Subject(options, rulesets, facts, proxy(options), live=True)


def _beside(ruleset: Ruleset, other: Ruleset, backend: str) -> Ruleset:
    """The rules with another backend's tables, which see the same packets; empty tables are left out."""
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
    """Routing facts of the calling thread's namespace. KernelError if they can't be read."""
    router = access.router()
    return _facts(router.addresses(), router.read())


def _facts(addresses: tuple[Address, ...], routing: tuple[RoutingEntry, ...]) -> Facts:
    uplink = next((each.device for each in addresses if each.device != LOOPBACK_INTERFACE), UPLINK)
    rules = tuple(entry for entry in routing if isinstance(entry, PolicyRule))
    routes = tuple(entry for entry in routing if isinstance(entry, Route))
    return Facts(addresses, rules, routes, uplink, switched_on("accept_local"), switched_on("route_localnet"))


def pod_addresses(text: str, interface: str = UPLINK) -> tuple[Address, ...]:
    """The pod's addresses: a comma list, or its manifest's, or one of each family reserved for documentation.

    OptionError for a bad one.
    """
    try:
        networks = parsers.addresses(text) if text else pod_ips.get() or tuple(POD.values())
    except ValueError as error:
        raise OptionError("--pod-address", text, str(error)) from None
    return tuple(Address(network, interface) for network in networks)
