"""Collects the facts for the doctor's checks: the options, their plan, and the machine."""

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
    """Collect the case of these options in their namespace; `identity` is the proxy's uid and gid.

    KernelError if the namespace can't be entered.
    """
    with access.namespace(options):
        resolved = _resolved(options)
        plan = build(resolved)
        user = os.environ.get("ENVOY_USER") or PROXY_USER
        machine = collect(_request(resolved, plan, user))
        try:
            backend, why = backends.choose(resolved)
        except InitError as error:
            backend, why = "", str(error)
    return Case(options, resolved, plan, machine, backend, why, identity, user, _node_support(resolved))


def _node_support(options: Options) -> NodeSupport | None:
    """Whether the node supports capture by eBPF, if the options select it."""
    if options.capture_backend != "ebpf":
        return None
    from istio_init.inspect.socket_capture import node_support

    return node_support()


def _request(options: Options, plan: Plan, user: str) -> FactsRequest:
    full = build(_all_features(options))
    rulesets = tuple(_combined(plan.ruleset(ruleset.family), ruleset) for ruleset in full.rulesets)
    lock = os.environ.get("XTABLES_LOCKFILE", "")
    return FactsRequest(rulesets, (*full.routes, *full.policy_rules), plan.rulesets, lock, options.cni_mode, user)


def _resolved(options: Options) -> Options:
    """The options with defaults resolved as in an apply; a check reports errors in resolv.conf."""
    quiet = Log("none")
    try:
        return resolve_defaults(options, quiet)
    except InitError:
        return resolve_defaults(options.replace(dns_servers=()), quiet)


def _all_features(options: Options) -> Options:
    """The options with every feature on that needs further tables, matches and targets."""
    return options.replace(
        enable_ipv6=True,
        istio_inbound_interception_mode="TPROXY",
        istio_inbound_ports=options.istio_inbound_ports or parsers.ALL,
        redirect_dns=True,
        capture_all_dns=True,
        drop_invalid=True,
    )


def _combined(plan: Ruleset | None, full: Ruleset) -> Ruleset:
    """The plan's tables, and the tables of all features where the plan has none."""
    return full.replace(tables=tuple((plan and plan.table(table.name)) or table for table in full.tables))
