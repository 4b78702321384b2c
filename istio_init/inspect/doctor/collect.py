"""The facts about a machine and the options that the doctor's checks are made of, gathered in one place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from istio_init.errors import InitError
from istio_init.inspect.doctor.case import Case
from istio_init.kernel.probe.facts import FactsRequest, collect
from istio_init.log import Log
from istio_init.model import parsers
from istio_init.options.table import PROXY_USER
from istio_init.planning.plan import build
from istio_init.runner import access, backends
from istio_init.runner.defaults import resolve_defaults

if TYPE_CHECKING:
    from istio_init.inspect.socket_capture import NodeSupport
    from istio_init.model.rules import Ruleset
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan


def examine(options: Options, identity: tuple[int, int]) -> Case:
    """The case of these options in the namespace that they name; `identity` is the proxy's uid and gid.

    KernelError where the namespace can't be entered.
    """
    with access.namespace(options):
        settled = _settled(options)
        plan = build(settled)
        user = os.environ.get("ENVOY_USER") or PROXY_USER
        machine = collect(_wishes(settled, plan, user))
        try:
            backend, why = backends.choose(settled)
        except InitError as error:
            backend, why = "", str(error)
    return Case(options, settled, plan, machine, backend, why, identity, user, _node_support(settled))


def _node_support(options: Options) -> NodeSupport | None:
    """Whether the node can capture by eBPF, where the options ask for that."""
    if options.capture_backend != "ebpf":
        return None
    from istio_init.inspect.socket_capture import node_support

    return node_support()


def _wishes(options: Options, plan: Plan, user: str) -> FactsRequest:
    full = build(_full(options))
    rulesets = tuple(_together(plan.ruleset(ruleset.family), ruleset) for ruleset in full.rulesets)
    lock = os.environ.get("XTABLES_LOCKFILE", "")
    return FactsRequest(rulesets, (*full.routes, *full.policy_rules), plan.rulesets, lock, options.cni_mode, user)


def _settled(options: Options) -> Options:
    """The options as an apply settles them; what is wrong with resolv.conf is a check's to say."""
    quiet = Log("none")
    try:
        return resolve_defaults(options, quiet)
    except InitError:
        return resolve_defaults(options.replace(dns_servers=()), quiet)


def _full(options: Options) -> Options:
    """The options with all that takes further tables, matches and targets switched on."""
    return options.replace(
        enable_ipv6=True,
        istio_inbound_interception_mode="TPROXY",
        istio_inbound_ports=options.istio_inbound_ports or parsers.ALL,
        redirect_dns=True,
        capture_all_dns=True,
        drop_invalid=True,
    )


def _together(plan: Ruleset | None, full: Ruleset) -> Ruleset:
    """The plan's own tables, and of the others the full ones."""
    return full.replace(tables=tuple((plan and plan.table(table.name)) or table for table in full.tables))
