"""The Plan: the desired rules and routing of a namespace, as one pure value."""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import FAMILIES, IPV4, IPV6, LOOPBACK_INTERFACE, Ruleset
from istio_init.planning.capture import PASSTHROUGH, capture, uses_tproxy
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family
    from istio_init.options.table import Options


class Plan(Record):
    """Rulesets (IPv4 first; IPv6 where it is on), and the routing that they need.

    `spare` is the routing that TPROXY would need with these options but the plan does not: it is recognized as
    Istio's where another plan, or an interrupted run, left it. `options` are those that the plan was made from, for
    what is not in its rules: the namespace and the backend that they are meant for. They don't count for equality.
    """

    rulesets: tuple[Ruleset, ...]
    policy_rules: tuple[PolicyRule, ...] = ()
    routes: tuple[Route, ...] = ()
    addresses: tuple[Address, ...] = ()
    spare: tuple[Route | PolicyRule, ...] = ()
    options: Options | None = None

    _uncompared = ("options",)

    @property
    def routing(self) -> tuple[RoutingEntry, ...]:
        """All routing entries in the order in which they are added."""
        return (*self.addresses, *self.routes, *self.policy_rules)

    def ruleset(self, family: Family) -> Ruleset | None:
        """The rules of one family, or None where the plan has none."""
        return next((ruleset for ruleset in self.rulesets if ruleset.family == family), None)


def build(options: Options) -> Plan:
    """The plan for these options; the same options always give the same plan. OptionError for too many rules."""
    if len(options.kube_virt_interfaces) > 1:
        _require_bounded(options)
    families = FAMILIES if options.enable_ipv6 else (IPV4,)
    rulesets = tuple(capture(options, family) for family in families)
    # Without ::6 on lo, Envoy's connections to the app have another source, match rule 2 and loop.
    addresses = (Address(PASSTHROUGH[IPV6], LOOPBACK_INTERFACE),) if IPV6 in families else ()
    used = families if uses_tproxy(options) and options.istio_inbound_ports else ()
    unused = tuple(family for family in FAMILIES if family not in used)
    spare: tuple[Route | PolicyRule, ...] = (*_routes(options, unused), *_policy_rules(options, unused))
    if used:
        mark, table = transition_mark(options.istio_inbound_tproxy_mark), options.istio_inbound_tproxy_route_table
        spare += tuple(PolicyRule(family, mark, table) for family in used)
    return Plan(rulesets, _policy_rules(options, used), _routes(options, used), addresses, spare)


def _require_bounded(options: Options) -> None:
    from istio_init.errors_rare import OptionError
    from istio_init.options.annotations import excess

    if count := excess(options.kube_virt_interfaces, options.istio_service_cidr):
        value = ",".join(options.kube_virt_interfaces)
        why = f"with --istio-service-cidr (-i) it makes {count} rules, at most {parsers.MOST_ENTRIES} are allowed"
        raise OptionError("--kube-virt-interfaces", value, why)


def transition_mark(mark: int) -> int:
    """The mark of captured packets while Istio's rules are moved to another backend's tables (planning/move.py)."""
    return mark ^ 0x40000000


def _policy_rules(options: Options, families: tuple[Family, ...]) -> tuple[PolicyRule, ...]:
    mark, table = options.istio_inbound_tproxy_mark, options.istio_inbound_tproxy_route_table
    return tuple(PolicyRule(family, mark, table) for family in families)


def _routes(options: Options, families: tuple[Family, ...]) -> tuple[Route, ...]:
    table = options.istio_inbound_tproxy_route_table
    return tuple(Route(family, LOOPBACK_INTERFACE, table) for family in families)
