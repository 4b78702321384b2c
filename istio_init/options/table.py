"""The one table of options: what may be asked for, under which names, with which defaults.

The fast parser (options/argv.py), the Typer commands (cli/typer_parameters.py), the pages of options and the checks are
made from `OPTIONS`. CONTRIBUTING.md shows how to add a flag.

Names, shorts, variables, defaults and their precedence are Istio's (tools/istio-iptables), but for those
in its last paragraph.
"""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.rules import Network
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias, TypeVar

    from istio_init.model.parsers import Everything, PortsOfUsers
    from istio_init.model.rules import PortRange

    T = TypeVar("T")
    # (kind, name) -> id: "user" or "group", and the numeric id, or None if the name is unknown.
    Lookup: TypeAlias = Callable[[str, str], int | None]

PORTS, ADDRESSES, OWNERS, DNS, TPROXY, RUNNING = "Ports", "Addresses", "Owners", "DNS", "TPROXY", "Running"
GROUPS = (PORTS, ADDRESSES, OWNERS, DNS, TPROXY, RUNNING)

# The user whose uid is the proxy's where --proxy-uid does not say (variable ENVOY_USER), and the uid where
# there is no such user: Istio's images run Envoy as istio-proxy, 1337.
PROXY_USER = "istio-proxy"
PROXY_UID = 1337

# Defaults that are compared with elsewhere (argv.dubious).
TPROXY_MARK, TPROXY_TABLE, PROBE_PORT, PROBE_TIMEOUT = 1337, 133, 15002, 5.0

SWITCH_VALUES = parsers.TRUE | parsers.FALSE

# What is wrong with a switch's value.
NO_BOOLEAN = "not true or false"
# What is wrong with a value that begins with a dash.
FLAG_FOR_A_VALUE = "looks like a flag, not a value; was the value left out?"


class Option:
    """One option: its names, how its text becomes a value, and what help says of it.

    `field` is its name in Options, from which the others are made when they are asked for. `accounts` is "user" or
    "group" where entries may be names instead of ids. `further` are further names of the flag, and `env` variables that
    come before the one of the field's name. A `switch` takes no value on the command line.
    """

    __slots__ = (
        "accounts",
        "default",
        "env",
        "field",
        "further",
        "group",
        "help",
        "metavar",
        "parse",
        "short",
        "switch",
    )

    field: str

    def __init__(  # noqa: PLR0913 (an option's properties)
        self,
        parse: Callable[[str], Any],
        default: object,
        short: str = "",
        *,
        group: str,
        help: str,  # noqa: A002 (the word that typer and argparse use)
        metavar: str = "",
        env: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
        accounts: str = "",
    ) -> None:
        self.default = default
        self.parse, self.short, self.group, self.help, self.accounts = parse, short, group, help, accounts
        self.metavar, self.env, self.further = metavar, env, aliases
        self.switch = parse is parsers.boolean

    @property
    def flag(self) -> str:
        """The flag's name, without dashes before it: the field's with dashes (Istio's log options keep underscores)."""
        return self.field if self.field.startswith("log_") else self.field.replace("_", "-")

    @property
    def aliases(self) -> tuple[str, ...]:
        """Further names of the flag."""
        return (self.field.replace("_", "-"), *self.further) if self.field.startswith("log_") else self.further

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables in order of precedence."""
        # A Kubernetes service called envoy puts ENVOY_PORT=tcp://... into every pod; Istio does not read it either.
        return self.env if self.field == "envoy_port" else (*self.env, self.field.upper())

    def names(self) -> str:
        """The option as an error message calls it: --flag (-s)."""
        return f"--{self.flag} (-{self.short})" if self.short else f"--{self.flag}"

    def all_names(self) -> tuple[str, ...]:
        """All names of the flag: its own, the short one, the aliases."""
        short = (f"-{self.short}",) if self.short else ()
        return (f"--{self.flag}", *short, *(f"--{alias}" for alias in self.aliases))

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, where there are only so many."""
        if self.parse is parsers.interception_mode:
            return parsers.MODES
        if self.parse is parsers.log_level:
            return parsers.LOG_LEVELS
        return tuple(filter(None, getattr(self.parse, "choices", ())))

    @property
    def repeats(self) -> bool:
        """Whether a flag that is given twice means both values."""
        return self.parse is parsers.log_targets

    @property
    def typed(self) -> bool:
        """Whether Istio's flag has a type of its own, so that its parser refuses a wrong value, and not its program."""
        return self.switch or self.parse in {parsers.duration, parsers.seconds, parsers.typed_port}


if TYPE_CHECKING:

    def option(parse: Callable[[str], T], default: T, short: str = "", **facts: Any) -> T:  # noqa: ANN401 (Option checks them)
        """An Option in the place of a field's default; for type checkers the field's value."""
else:
    option = Option

switch = parsers.boolean


class Options(Record):
    """Everything that a run can be configured with. Ports are ints, networks Networks, durations seconds.

    `enable_ipv6` and `dns_servers` are None until something looks (runner.defaults.resolve_defaults); a plan made from
    None has no IPv6 and no servers.
    """

    # Ports.
    envoy_port: int = option(
        parsers.port, 15001, "p", group=PORTS, metavar="PORT", help="Envoy's port for outbound traffic."
    )
    inbound_capture_port: int = option(
        parsers.port, 15006, "z", group=PORTS, metavar="PORT", help="Envoy's port for inbound traffic."
    )
    inbound_tunnel_port: int = option(
        parsers.port,
        15008,
        "e",
        group=PORTS,
        metavar="PORT",
        help="The HBONE tunnel's port, excluded inbound (but not with TPROXY).",
    )
    istio_inbound_ports: tuple[PortRange, ...] | Everything = option(
        parsers.all_or_ports, (), "b", group=PORTS, metavar="PORTS",
        help="Inbound ports to capture, or * for all. Empty: none.",
    )  # fmt: skip
    istio_local_exclude_ports: tuple[PortRange, ...] = option(
        parsers.ports,
        (),
        "d",
        group=PORTS,
        metavar="PORTS",
        help="Inbound ports to exclude; only used with -b '*'.",
    )
    istio_outbound_ports: tuple[PortRange, ...] = option(
        parsers.ports, (), "q", group=PORTS, metavar="PORTS", help="Outbound ports to capture for every destination."
    )
    istio_local_outbound_ports_exclude: tuple[PortRange, ...] = option(
        parsers.ports, (), "o", group=PORTS, metavar="PORTS", help="Outbound ports to exclude."
    )
    iptables_probe_port: int = option(
        parsers.typed_port, PROBE_PORT, group=PORTS, metavar="PORT", help="The port that --run-validation dials."
    )

    # Addresses and interfaces.
    istio_service_cidr: tuple[Network, ...] | Everything = option(
        parsers.all_or_networks, (), "i", group=ADDRESSES, metavar="CIDRS",
        help="Destinations to capture outbound, or * for all. Empty: none.",
    )  # fmt: skip
    istio_service_exclude_cidr: tuple[Network, ...] = option(
        parsers.networks, (), "x", group=ADDRESSES, metavar="CIDRS", help="Destinations to exclude."
    )
    istio_inbound_exclude_cidr: tuple[Network, ...] = option(
        parsers.networks, (), group=ADDRESSES, metavar="CIDRS",
        help="Sources whose inbound traffic is not captured.",
    )  # fmt: skip
    istio_exclude_interfaces: tuple[str, ...] = option(
        parsers.interfaces,
        (),
        "c",
        group=ADDRESSES,
        metavar="NAMES",
        help="Interfaces to exclude, inbound and outbound.",
    )
    kube_virt_interfaces: tuple[str, ...] = option(
        parsers.interfaces, (), "k", group=ADDRESSES, metavar="NAMES",
        help="Interfaces of virtual machines, whose incoming traffic is treated as outbound.",
    )  # fmt: skip
    istio_outbound_ipv4_loopback_cidr: Network = option(
        parsers.loopback, Network(b"\x7f\0\0\1", 32), group=ADDRESSES, metavar="CIDR",
        help="The IPv4 loopback range that applications use.",
    )  # fmt: skip
    enable_ipv6: bool | None = option(
        switch, None, group=ADDRESSES, help="Write IPv6 rules as well. Unset: if the namespace's first address is IPv6."
    )
    dual_stack: bool = option(
        switch, False, group=ADDRESSES, env=("ISTIO_DUAL_STACK",),
        help="If --enable-ipv6 is unset: write IPv6 rules if any address of the namespace is IPv6.",
    )  # fmt: skip
    ip_family: str = option(
        parsers.one_of("all", "ipv4", "ipv6"), "all", group=ADDRESSES, metavar="FAMILY", aliases=("family",),
        help="Which family a dry run prints: ipv4, ipv6 or all.",
    )  # fmt: skip

    # Owners.
    proxy_uid: tuple[int, ...] = option(
        parsers.owners, (PROXY_UID,), "u", group=OWNERS, metavar="UIDS", accounts="user",
        help="The proxy's users. Empty: $ENVOY_USER (istio-proxy), else 1337.",
    )  # fmt: skip
    proxy_gid: tuple[int, ...] = option(
        parsers.owners, (), "g", group=OWNERS, metavar="GIDS", accounts="group",
        help="The proxy's groups. Empty: the same ids as its users.",
    )  # fmt: skip
    istio_outbound_owner_groups: tuple[int, ...] | Everything = option(
        parsers.all_or_owner_groups, parsers.ALL, group=OWNERS, metavar="GIDS", accounts="group",
        help="Groups whose outbound traffic is captured, or * for all; at most 64.",
    )  # fmt: skip
    istio_outbound_owner_groups_exclude: tuple[int, ...] = option(
        parsers.excluded_owner_groups, (), group=OWNERS, metavar="GIDS", accounts="group",
        help="Groups whose outbound traffic is not captured; only with all groups included.",
    )  # fmt: skip
    exclude_uids_for_ports: tuple[PortsOfUsers, ...] = option(
        parsers.ports_of_users, (), group=OWNERS, metavar="PROTOCOL:PORTS:UIDS",
        help="Users whose outbound traffic to some ports is not captured, e.g. tcp:443:1000; several with ;.",
    )  # fmt: skip

    # DNS.
    redirect_dns: bool = option(
        switch, False, group=DNS, env=("ISTIO_META_DNS_CAPTURE",),
        help="Send DNS queries to the agent's resolver on port 15053.",
    )  # fmt: skip
    capture_all_dns: bool = option(
        switch, False, group=DNS, help="With --redirect-dns: queries to any server, not only to resolv.conf's."
    )
    dns_servers: tuple[Network, ...] | None = option(
        parsers.addresses, None, group=DNS, metavar="ADDRESSES",
        help="The servers whose queries are redirected. Unset: those of /etc/resolv.conf.",
    )  # fmt: skip

    # TPROXY.
    istio_inbound_interception_mode: str = option(
        parsers.interception_mode, "REDIRECT", "m", group=TPROXY, metavar="MODE",
        help="How inbound traffic reaches Envoy: REDIRECT, or TPROXY, which keeps the client's address.",
    )  # fmt: skip
    istio_inbound_tproxy_mark: int = option(
        parsers.mark, TPROXY_MARK, "t", group=TPROXY, metavar="MARK", help="The mark of inbound packets in TPROXY mode."
    )
    istio_inbound_tproxy_route_table: int = option(
        parsers.route_table,
        TPROXY_TABLE,
        "r",
        group=TPROXY,
        metavar="TABLE",
        help="The routing table that delivers them locally.",
    )

    # Running.
    dry_run: bool = option(
        switch, False, "n", group=RUNNING, help="Print the rules as iptables-save would afterwards, and change nothing."
    )
    network_namespace: str = option(
        parsers.path,
        "",
        group=RUNNING,
        aliases=("netns",),
        metavar="PATH",
        help="Work in this namespace, e.g. /var/run/netns/x or /proc/1/ns/net.",
    )
    reconcile: bool = option(
        switch, False, group=RUNNING, help="Update existing Istio rules to the requested ones instead of failing."
    )
    force_apply: bool = option(switch, False, group=RUNNING, help="Write the rules even if they are in place.")
    cleanup_only: bool = option(switch, False, group=RUNNING, help="Remove all Istio rules, and do nothing else.")
    skip_rule_apply: bool = option(switch, False, group=RUNNING, help="Don't touch the rules.")
    run_validation: bool = option(
        switch, False, group=RUNNING, help="Check with real connections that traffic is captured; exit 126 if not."
    )
    probe_timeout: float = option(
        parsers.duration,
        PROBE_TIMEOUT,
        group=RUNNING,
        metavar="DURATION",
        help="How long the validation tries, e.g. 500ms or 1m30s.",
    )
    drop_invalid: bool = option(
        switch, False, group=RUNNING, env=("INVALID_DROP",), help="Drop inbound packets in conntrack state INVALID."
    )
    insert_jumps: bool = option(
        switch, False, group=RUNNING, help="Put Istio's jumps before other programs' rules; Istio appends them."
    )
    rule_comments: bool = option(
        switch,
        False,
        group=RUNNING,
        help="Say in a comment what each rule is for, as iptables -L and nft list show it.",
    )
    cni_mode: bool = option(switch, False, group=RUNNING, help="For CNI plugins: lock the namespace, not the node.")
    wait: float = option(
        parsers.seconds, 30.0, group=RUNNING, metavar="SECONDS", help="How long to wait for the xtables lock."
    )
    force_iptables_binary: str = option(
        parsers.one_of("", "legacy", "nft"),
        "",
        group=RUNNING,
        metavar="BACKEND",
        help="Which iptables backend to use: legacy or nft.",
    )
    capture_backend: str = option(
        parsers.one_of("iptables", "ebpf"), "iptables", group=RUNNING, metavar="BACKEND",
        help="How traffic is captured: by netfilter rules, or by eBPF programs at the node's cgroup.",
    )  # fmt: skip
    native_nftables: bool = option(switch, False, group=RUNNING, help="Write nftables rules instead of iptables rules.")
    iptables_engine: str = option(
        parsers.one_of("libiptc", "python-iptables"), "libiptc", group=RUNNING, metavar="ENGINE",
        help="What writes the tables: libiptc, or python-iptables, the slower second opinion.",
    )  # fmt: skip
    compat_version: str = option(
        parsers.one_of("latest", "1.13"), "latest", group=RUNNING, metavar="VERSION",
        help="Which Istio release's rules to write: latest or 1.13.",
    )  # fmt: skip
    log_output_level: str = option(
        parsers.log_level,
        "info",
        group=RUNNING,
        metavar="LEVELS",
        help="none, fatal, error, warn, info or debug.",
    )
    log_as_json: bool = option(switch, False, group=RUNNING, help="Write log lines as JSON.")
    log_target: tuple[str, ...] = option(
        parsers.log_targets, (), group=RUNNING, metavar="PATHS",
        help="Where log lines go: stdout, stderr or files; may be repeated. Unset: stderr.",
    )  # fmt: skip
    strict_env: bool = option(
        switch, False, group=RUNNING,
        help="Refuse a variable that is no boolean, number or duration where one is needed; else it is ignored.",
    )  # fmt: skip
    log_caller: str = option(
        parsers.anything, "", group=RUNNING, metavar="SCOPES", help="Accepted as Istio passes it; no effect."
    )
    log_stacktrace_level: str = option(
        parsers.anything, "", group=RUNNING, metavar="LEVELS", help="Accepted as Istio passes it; no effect."
    )

    @property
    def proxy_groups(self) -> tuple[int, ...]:
        """The proxy's group ids; without -g they equal its user ids."""
        return self.proxy_gid or self.proxy_uid

    @property
    def lacks_nameservers(self) -> bool:
        """Whether DNS capture depends on nameservers that are not known yet; with --cni-mode all DNS is captured."""
        return self.redirect_dns and self.dns_servers is None and not (self.capture_all_dns or self.cni_mode)


OPTIONS: tuple[Option, ...] = tuple(Options.specifiers.values())
for _field, _option in Options.specifiers.items():
    _option.field = _field


def resolve(
    texts: Mapping[str, str],
    environ: Mapping[str, str],
    lookup: Lookup,
    values: Mapping[str, Any] | None = None,
    warnings: list[str] | None = None,
) -> Options:
    """The Options that a command line and an environment mean.

    `texts` has the text of each option on the command line, by field; `values` has parsed values from elsewhere, such
    as a pod's annotations. Precedence: command line, `values`, the option's variables in order, its default; an empty
    variable counts as unset. So does one that is wrong for the type of its flag (a switch is then off, as in Istio's
    program), with a line in `warnings`. Raises OptionError, which names the flag or variable and the wrong value.
    """
    parsed: dict[str, Any] = dict(values) if values else {}
    named = _fields_in(environ)
    for each in OPTIONS:
        if each.field in texts:
            parsed[each.field] = _parse(each, texts[each.field], lookup, argv=True)
            continue
        if each.field in parsed or each.field not in named:
            continue
        for variable in each.variables:
            if text := environ.get(variable, ""):
                if each.typed and (why := _misfit(each, text)):
                    strict = texts.get("strict_env", environ.get("STRICT_ENV", "")) in parsers.TRUE
                    warn_of_misfit(variable, text, warnings, why, strict=strict)
                    if each.switch:
                        parsed[each.field] = False
                    break
                parsed[each.field] = _parse(each, text, lookup, variable)
                break
    if not parsed.get("proxy_uid"):
        uid = lookup("user", environ.get("ENVOY_USER") or PROXY_USER)
        parsed["proxy_uid"] = (PROXY_UID if uid is None else uid,)
    return Options(**parsed)


def _fields_in(environ: Mapping[str, str]) -> set[str]:
    """The fields of the options whose variables an environment may have, and of no option.

    Of a pod's variables few are options': asking for the variables of each option would take longer.
    """
    fields = {name.lower() for name in environ}
    fields.update([each.field for each in OPTIONS if each.env])
    return fields


def _misfit(each: Option, text: str) -> str:
    """Why a text is no value of a flag with a type of its own; empty if it is one."""
    if each.switch:
        return "" if text in SWITCH_VALUES else NO_BOOLEAN
    try:
        each.parse(text)
    except ValueError as error:
        return str(error)
    return ""


def warn_of_misfit(
    variable: str, text: str, warnings: list[str] | None, why: str = NO_BOOLEAN, *, strict: bool
) -> None:
    """Refuse a variable that is wrong for its flag's type with --strict-env, else leave a warning."""
    from istio_init.errors import shown
    from istio_init.errors_rare import OptionError

    if strict:
        raise OptionError(variable, text, why, exit_code=1)
    if warnings is not None:
        meaning = "taken for false, as in Istio's program" if why == NO_BOOLEAN else "ignored: the default counts"
        warnings.append(f"{variable}: {shown(text)}: {why}; {meaning}")


def parse_texts(texts: Mapping[str, str], lookup: Lookup) -> dict[str, Any]:
    """The values of option texts, by field; raises OptionError, which names the flag and the wrong value."""
    return {each.field: _parse(each, texts[each.field], lookup) for each in OPTIONS if each.field in texts}


def _parse(each: Option, text: str, lookup: Lookup, variable: str = "", *, argv: bool = False) -> object:
    """The value of an option's text; `variable` is where it is from, if not from the flag."""
    try:
        if text.startswith("-"):
            raise ValueError(FLAG_FOR_A_VALUE)  # noqa: TRY301
        return each.parse(_numeric(each.accounts, text, lookup) if each.accounts else text)
    except ValueError as error:
        from istio_init.errors_rare import OptionError

        # Istio's exit codes: 255 for what its flag parser refuses, 1 for what its program refuses.
        exit_code = 255 if argv and each.typed else 1
        raise OptionError(variable or each.names(), text, str(error), exit_code=exit_code) from None


def _numeric(kind: str, text: str, lookup: Lookup) -> str:
    """A comma list with the names of users or groups replaced by their ids."""
    entries = []
    for item in parsers.items(text):
        if item[0] in "0123456789" or item == parsers.ALL:
            entries.append(item)
            continue
        number = lookup(kind, item)
        if number is None:
            raise ValueError(f"no {kind} {item[:40]!r} in /etc/{'passwd' if kind == 'user' else 'group'}")
        entries.append(str(number))
    return ",".join(entries)
