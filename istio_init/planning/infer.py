"""From existing rules to the options that make them: exactly, or as near as options come, with the rest. Pure.

recognition.py reads each option from the place where a plan has it. Here the plan of these options is built and
compared with the rules; where a place can be read in two ways, the reading whose plan differs least wins.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from istio_init.errors import InitError
from istio_init.errors_rare import OptionError
from istio_init.formats.nft.as_rulesets import ruleset as from_inet
from istio_init.formats.nft.layout import layout
from istio_init.model import parsers
from istio_init.model.differences import differences
from istio_init.model.inet import NAMES
from istio_init.model.ownership import own_part
from istio_init.model.routing import PolicyRule
from istio_init.model.rules import IPV4, IPV6, Chain, Ruleset
from istio_init.model.unknown import Comment
from istio_init.options.arguments import text
from istio_init.options.table import OPTIONS, Options
from istio_init.planning import recognition
from istio_init.planning.drift_text import difference_text
from istio_init.planning.plan import build
from istio_init.planning.recognised_rules import Reader
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.differences import Difference
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, Network, Rule
    from istio_init.planning.plan import Plan


class Inference(Record):
    """The options of existing rules; `differences` are those between their plan and the rules, by family.

    `missing` is the routing that the options need and the namespace lacks; nothing where routing is not known.
    """

    options: Options
    differences: tuple[tuple[Family, Difference], ...] = ()
    missing: tuple[RoutingEntry, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether these options make the rules and the routing that exist, no more and no less."""
        return not self.differences and not self.missing

    @property
    def remainder(self) -> tuple[str, ...]:
        """What the options do not explain, and what they would make that does not exist, in words."""
        return tuple(difference_text(family, each) for family, each in self.differences)


def infer(
    rulesets: tuple[Ruleset, ...], routing: tuple[RoutingEntry, ...] | None = None, *, native: bool = False
) -> Inference | None:
    """The options of Istio's rules; None where there are none.

    `rulesets` are one backend's, other programs' rules included. `routing` is None where it is not known. Of `native`
    tables the sets keep neither order nor overlaps: rules that become the same sets are the same.
    """
    own = tuple(ruleset for ruleset in rulesets if any(own_part(table) for table in ruleset.tables))
    if not own:
        return None
    plain = tuple(map(_without_comments, own))
    inferences: list[Inference] = []
    for options in _readings(tuple(map(Reader, plain)), routing or ()):
        for rule_comments in (False,) if plain == own else (True, False):
            candidate = _valid(options).replace(rule_comments=rule_comments)
            inference = _compared(candidate, own, routing, native=native)
            if inference.exact:
                return inference
            inferences.append(inference)
    # The first of those that differ least.
    return min(inferences, key=lambda each: len(each.differences))


def _without_comments(ruleset: Ruleset) -> Ruleset:
    """The rules without their comments, by which --rule-comments says what each is for."""
    return ruleset.replace(
        tables=tuple(
            table.replace(chains=tuple(Chain(each.name, _plain(each.rules), each.policy) for each in table.chains))
            for table in ruleset.tables
        )
    )


def _plain(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(
        rule.replace(matches=tuple(match for match in rule.matches if not isinstance(match, Comment))) for rule in rules
    )


def _readings(readers: tuple[Reader, ...], routing: tuple[RoutingEntry, ...]) -> Iterator[Options]:
    """The options that the rules may mean, the likeliest first."""
    fields = _fields(readers)
    main = readers[0]
    releases = dict.fromkeys((fields.get("compat_version", "latest"), "latest", "1.13"))
    excluded = recognition.excluded_interfaces(main)
    captured_from = tuple(dict.fromkeys(name for each in readers for name in recognition.captured_machines(each)))
    machines_of = (recognition.virtual_machines(main, excluded), captured_from, ())
    interfaces = dict.fromkeys((machines, names) for names in (excluded, ()) for machines in machines_of)
    mark = fields.get("istio_inbound_tproxy_mark")
    if tables := [entry.table for entry in routing if isinstance(entry, PolicyRule) and entry.mark == mark]:
        fields["istio_inbound_tproxy_route_table"] = tables[0]
    for version, (machines, names) in product(releases, interfaces):
        tunnel = fields.get("inbound_tunnel_port", Options().inbound_tunnel_port)
        captured = dict(recognition.inbound(main, release_113=version == "1.13", tunnel=tunnel))
        yield Options(
            **{**fields, **captured, "compat_version": version},
            kube_virt_interfaces=machines,
            istio_exclude_interfaces=names,
        )


def _fields(readers: tuple[Reader, ...]) -> dict[str, Any]:
    """The options that are read in one way only, by field. The first family says what both have in common."""
    main = readers[0]
    fields: dict[str, Any] = {"enable_ipv6": any(reader.family == IPV6 for reader in readers)}
    for concern in (recognition.proxy_ports, recognition.release, recognition.owners, recognition.marks):
        for field, value in concern(main):
            fields.setdefault(field, value)
    fields.update(recognition.outbound_ports(main))
    if main.family == IPV4:
        fields["istio_outbound_ipv4_loopback_cidr"] = recognition.loopback(main)
    fields["istio_inbound_exclude_cidr"] = _of_all(readers, recognition.excluded_sources)
    fields["istio_service_exclude_cidr"] = _of_all(readers, recognition.excluded_destinations)
    fields["istio_service_cidr"] = _captured(readers)
    fields["drop_invalid"] = recognition.drops_invalid(main)
    if any(map(recognition.captures_dns, readers)):
        fields["redirect_dns"] = True
        fields["capture_all_dns"] = any(map(recognition.captures_all_dns, readers))
        if not fields["capture_all_dns"]:
            fields["dns_servers"] = _of_all(readers, recognition.servers) or (recognition.UNSEEN_SERVER,)
    return fields


def _of_all(readers: tuple[Reader, ...], read: Any) -> tuple[Network, ...]:  # noqa: ANN401 (a function of this module)
    """What the families name, one after the other."""
    return tuple(network for reader in readers for network in read(reader))


def _captured(readers: tuple[Reader, ...]) -> tuple[Network, ...] | str:
    """-i: every destination where each family captures all of its own, else the list."""
    named = [recognition.captured_destinations(reader) for reader in readers]
    spared = any(map(recognition.spares_own_calls, readers))
    flushed = all(not reader.chain("nat", "ISTIO_OUTPUT") for reader in readers)
    every = all(each == (recognition.ANYWHERE[reader.family],) for each, reader in zip(named, readers, strict=True))
    calls = any(map(recognition.calls_to_itself, readers))
    if flushed or (every and (spared or not calls)):
        # Of a chain that has lost its rules: Istio's injection captures all destinations.
        return parsers.ALL
    networks = tuple(network for each in named for network in each)
    if calls and not spared and not any(map(parsers.is_loopback, networks)):
        return (*networks, recognition.UNSEEN_LOOPBACK)
    return networks


def _valid(options: Options) -> Options:
    """The options without values that no flag takes, such as a dump's mark 0: those get their defaults."""
    values = {}
    for each in OPTIONS:
        value = getattr(options, each.field)
        if value != each.default:
            try:
                each.parse(text(each, value))
            except ValueError:
                values[each.field] = each.default
    return options.replace(**values)


def _as_planned(current: tuple[Ruleset, ...], plan: Plan) -> tuple[Ruleset, ...]:
    """Native rules as those of the plan where they become the same sets."""
    try:
        tables = tuple(layout(current, name) for name in NAMES)
        return tuple(from_inet(tables, each.family, plan.ruleset(each.family)) for each in current)
    except InitError:
        # Rules of iptables' tables, which have no form in native ones.
        return current


def against(
    options: Options, rulesets: tuple[Ruleset, ...], routing: tuple[RoutingEntry, ...] | None, *, native: bool = False
) -> Inference:
    """How the rules and the routing that exist differ from the plan of options that are known."""
    return _compared(options, rulesets, routing, native=native)


def _compared(
    options: Options, current: tuple[Ruleset, ...], routing: tuple[RoutingEntry, ...] | None, *, native: bool
) -> Inference:
    try:
        plan = build(options)
    except OptionError:
        options = options.replace(kube_virt_interfaces=())
        plan = build(options)
    if native:
        current = _as_planned(current, plan)
    states = {ruleset.family: ruleset for ruleset in current}
    families = [*plan.rulesets, *(Ruleset(family, ()) for family in states if plan.ruleset(family) is None)]
    deviations = tuple(
        (desired.family, each)
        for desired in families
        for each in differences(desired, states.get(desired.family, Ruleset(desired.family, ())))
    )
    missing = () if routing is None else tuple(entry for entry in plan.routing if entry not in routing)
    return Inference(options, deviations, missing)
