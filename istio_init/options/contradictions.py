"""Options that contradict each other, or that have no effect beside others: warnings, each with the reason.

Imported only for options that few runs have (argv.dubious): a plain run does not pay for it.
"""

from __future__ import annotations

from istio_init.model.parsers import ALL
from istio_init.options.annotations import SIDECAR_PORTS
from istio_init.options.table import OPTIONS, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = {each.field: each.names() for each in OPTIONS}
_DEFAULTS = Options()
_SIDECAR_PORTS = frozenset(map(int, SIDECAR_PORTS.split(",")))


def _only_sidecar_ports(options: Options) -> bool:
    """Whether nothing but the sidecar's own ports is excluded: the injection always excludes them."""
    return all(each.low == each.high and each.low in _SIDECAR_PORTS for each in options.istio_local_exclude_ports)


def _captures_nothing_outbound(options: Options) -> bool:
    return not options.istio_service_cidr and not options.istio_outbound_ports


# A field, why it has no effect, and when that is so. A field with its default never has a warning.
RULES: tuple[tuple[str, str, Callable[[Options], bool]], ...] = (
    (
        "istio_local_exclude_ports",
        "only used with --istio-inbound-ports '*' (-b); list the ports to capture there instead",
        lambda options: options.istio_inbound_ports != ALL and not _only_sidecar_ports(options),
    ),
    (
        "istio_outbound_ports",
        "--istio-service-cidr '*' (-i) captures every port already",
        lambda options: options.istio_service_cidr == ALL and not options.istio_service_exclude_cidr,
    ),
    (
        "istio_service_exclude_cidr",
        "nothing is captured outbound; set --istio-service-cidr (-i)",
        _captures_nothing_outbound,
    ),
    (
        "istio_local_outbound_ports_exclude",
        "nothing is captured outbound; set --istio-service-cidr (-i)",
        _captures_nothing_outbound,
    ),
    (
        "istio_outbound_owner_groups_exclude",
        "only used if --istio-outbound-owner-groups is '*'",
        lambda options: options.istio_outbound_owner_groups != ALL,
    ),
    ("capture_all_dns", "only used with --redirect-dns", lambda options: not options.redirect_dns),
    (
        "dns_servers",
        "only used with --redirect-dns and without --capture-all-dns",
        lambda options: bool(options.dns_servers) and (options.capture_all_dns or not options.redirect_dns),
    ),
    ("dual_stack", "--enable-ipv6 decides", lambda options: options.enable_ipv6 is not None),
    (
        "istio_inbound_tproxy_mark",
        "only used with --istio-inbound-interception-mode TPROXY (-m)",
        lambda options: options.istio_inbound_interception_mode != "TPROXY",
    ),
    (
        "istio_inbound_tproxy_route_table",
        "only used with --istio-inbound-interception-mode TPROXY (-m)",
        lambda options: options.istio_inbound_interception_mode != "TPROXY",
    ),
    ("probe_timeout", "only used with --run-validation", lambda options: not options.run_validation),
    ("iptables_probe_port", "only used with --run-validation", lambda options: not options.run_validation),
    ("reconcile", "nothing is applied", lambda options: options.cleanup_only or options.skip_rule_apply),
    ("force_apply", "nothing is applied", lambda options: options.cleanup_only or options.skip_rule_apply),
)


def contradictions(options: Options) -> tuple[str, ...]:
    """The warnings about these options, each one line: the flag, and why it has no effect."""
    return tuple(
        f"{_NAMES[field]}: no effect: {why}"
        for field, why, holds in RULES
        if getattr(options, field) != getattr(_DEFAULTS, field) and holds(options)
    )
