"""What Python programs call: the functions that the package has at its top.

Each imports what it needs when it is called: planning alone must not import kernel code.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.options.table import Options
    from istio_init.planning.changes import Changes
    from istio_init.planning.plan import Plan


def plan(options: Options) -> Plan:
    """The rules and routing of these options, as a pure value.

    Text in place of a value is parsed as its flag's would be. `enable_ipv6` and `dns_servers` count as they are given:
    None means no IPv6 and no servers. OptionError (an InitError) names the field of a value that its flag would refuse.
    """
    from istio_init.options.arguments import checked
    from istio_init.planning.plan import build

    return build(checked(options))


def dump(plan: Plan) -> str:
    """The plan as iptables-save would print it once it is applied; routing as `ip` commands in comment lines."""
    from istio_init.planning.preview import dump as dump_plan

    return dump_plan(plan)


def apply(
    plan: Plan, *, network_namespace: str = "", reconcile: bool = False, force: bool = False, wait: float = 30.0
) -> Changes:
    """Bring a network namespace (a path; empty: the calling thread's) to the plan; returns what was changed.

    Waits up to `wait` seconds for the xtables lock. InitError where different Istio rules exist and `reconcile` is
    off, where the lock can't be acquired, and where the kernel refuses; the namespace is then unchanged.
    Needs CAP_NET_ADMIN and CAP_NET_RAW, and CAP_SYS_ADMIN to enter another namespace.
    """
    from istio_init.log import Log
    from istio_init.options.table import Options
    from istio_init.runner import access, backends, transaction

    log = Log("none")
    options = Options(network_namespace=network_namespace, wait=wait)
    with access.namespace(options), access.lock(options, {}, log):
        firewall, router = backends.firewall(options), access.router()
        return transaction.apply(plan, firewall, router, log, reconcile=reconcile, force=force)
