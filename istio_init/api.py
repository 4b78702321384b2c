"""The public functions of the package.

Each imports its dependencies when called, since planning alone must not import kernel code.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.options.table import Options
    from istio_init.planning.changes import Changes
    from istio_init.planning.plan import Plan


def plan(options: Options) -> Plan:
    """The rules and routing of these options, as a pure value that carries the options along.

    A value of an option may be text as on a command line, a number, an object of `ipaddress`, or a tuple of these.
    `enable_ipv6` and `dns_servers` are not detected: None means no IPv6 and no servers. Raises OptionError (an
    InitError), which names the field, for a value that its flag would reject.
    """
    from istio_init.options.given_values import checked
    from istio_init.planning.plan import build

    parsed = checked(options)
    return build(parsed).replace(options=parsed)


def dump(plan: Plan) -> str:
    """The plan as its backend would print it once it is applied, with counters of zero.

    That is iptables-save's text with the routing as `ip` commands in comment lines, or, for options with
    `native_nftables`, what `nft list ruleset` prints.
    """
    from istio_init.planning.preview import dump as dump_iptables
    from istio_init.planning.preview import dump_nftables

    native = plan.options is not None and plan.options.native_nftables
    return dump_nftables(plan) if native else dump_iptables(plan)


# Options that select another action than applying a plan; a program calls the function for it.
NOT_APPLIED = ("dry_run", "cleanup_only", "skip_rule_apply", "run_validation", "capture_backend")


def apply(
    plan: Plan,
    *,
    network_namespace: str | None = None,
    reconcile: bool | None = None,
    force: bool | None = None,
    wait: float | None = None,
) -> Changes:
    """Apply the plan to a network namespace; returns the changes.

    The namespace (a path; empty: the calling thread's), the backend (`native_nftables`, `force_iptables_binary`,
    `iptables_engine`), `reconcile`, `force_apply` and `wait` come from the plan's options; arguments override them.
    Waits up to `wait` seconds for the xtables lock.

    Raises OptionError if the plan's options select another action; InitError if different Istio rules exist
    and `reconcile` is off, if the lock can't be acquired, and if the kernel refuses: the namespace is then unchanged.
    Needs CAP_NET_ADMIN and CAP_NET_RAW, and CAP_SYS_ADMIN to enter another namespace.
    """
    from istio_init.log import Log
    from istio_init.options.table import Options
    from istio_init.runner import access, backends, transaction

    arguments = {"network_namespace": network_namespace, "reconcile": reconcile, "force_apply": force, "wait": wait}
    options = plan.options or Options()
    _require_applicable(options)
    options = options.replace(**{field: value for field, value in arguments.items() if value is not None})
    log = Log("none")
    with access.namespace(options), access.lock(options, {}, log):
        present = backends.tables()
        firewall, router = backends.firewall(options, log, present), access.router()
        others = backends.others(options, firewall, present)
        return transaction.apply(
            plan, firewall, router, log, reconcile=options.reconcile, force=options.force_apply, others=others
        )


def _require_applicable(options: Options) -> None:
    """Raise OptionError if the options select another action than applying their plan."""
    from istio_init.errors_rare import OptionError
    from istio_init.options.table import OPTIONS

    for each in OPTIONS:
        value = getattr(options, each.field)
        if each.field in NOT_APPLIED and value != each.default:
            raise OptionError(each.field, str(value), f"apply can't do this: run istio-iptables --{each.flag}")
