"""The data for a page's scripts: a plan or a namespace as plain dicts, lists, strings and numbers.

Addresses are hexadecimal digits in network order, port ranges are pairs; a match or a target has its Record's name
and fields. Texts that do not depend on a packet are made here instead of in the scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.draw.graph import build_graph
from istio_init.formats.addresses import PROTOCOLS
from istio_init.formats.iptables_save import rule_text
from istio_init.model.foreign import AnyMark, ChangeSets, Fixed, MapPrefix, ToSelf, Translate
from istio_init.model.rules import FAMILIES, Network, PortRange
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.planning.capture import AGENT_DNS_PORT, PASSTHROUGH
from istio_init.record import Record
from istio_init.simulate.foreign import assumptions, parts
from istio_init.simulate.foreign_targets import effect_of
from istio_init.simulate.path import APPLICATION, CLIENT, EPHEMERAL_PORT, SENDERS
from istio_init.simulate.purposes import purpose, purposes
from istio_init.simulate.report import ENDS, STOPS, TAILS
from istio_init.simulate.report_json import purpose_json
from istio_init.simulate.wording import describe_match

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.packet import Facts
    from istio_init.model.rules import Chain, Rule, Ruleset
    from istio_init.options.table import Options
    from istio_init.simulate.path import Proxy
    from istio_init.simulate.purposes import Purpose, RuleLocation
    from istio_init.simulate.report import TextLine

# Constants of simulate/path.py and report.py.
FIXED: dict[str, Any] = {
    "application": APPLICATION,
    "client": CLIENT,
    "senders": SENDERS,
    "ends": ENDS,
    "stops": STOPS,
    "tails": sorted(TAILS),
    "protocols": {str(number): name for number, name in PROTOCOLS.items()},
    "ephemeral_port": EPHEMERAL_PORT,
    "dns_port": AGENT_DNS_PORT,
    "passthrough": {family: PASSTHROUGH[family].address.hex() for family in FAMILIES},
}


class PageSubject(Record):
    """What a page shows: rules, routing and the proxy. `live` rules are the kernel's, `saved` ones come from a dump.

    `proxy` is how the proxy's configuration handles one packet, in lines, and `explain` the command that prints it for
    a packet whose flags are appended; both are empty without a configuration.
    """

    options: Options
    rulesets: tuple[Ruleset, ...]
    facts: Facts
    envoy: Proxy
    live: bool
    proxy: tuple[TextLine, ...] = ()
    explain: str = ""
    saved: bool = False


def model(about: PageSubject) -> dict[str, Any]:
    """The data with which the scripts follow a packet."""
    return {
        **FIXED,
        "live": about.live,
        "explain": about.explain,
        "virtual_interfaces": list(about.options.kube_virt_interfaces),
        "envoy": plain(about.envoy),
        "facts": plain(about.facts.replace(lookup=None, ip_sets=())),
        "families": {ruleset.family: _ruleset(ruleset, about) for ruleset in about.rulesets},
    }


def _ruleset(ruleset: Ruleset, about: PageSubject) -> dict[str, Any]:
    reasons = purposes(about.options, ruleset.family)
    return {
        "links": build_graph(ruleset, reasons, about.envoy).links,
        "tables": [
            {"name": table.name, "chains": [_chain(chain, table.name, reasons) for chain in table.chains]}
            for table in ruleset.tables
        ],
    }


def _chain(chain: Chain, table: str, reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    rules = [_rule(rule, purpose(reasons, table, chain.name, rule)) for rule in chain.rules]
    return {"name": chain.name, "policy": chain.policy, "rules": rules}


def _rule(rule: Rule, why: Purpose | None) -> dict[str, Any]:
    matches = []
    for match in rule.matches:
        for part in parts(match) if isinstance(match, UnknownMatch) else (match,):
            what, expected = describe_match(part)
            matches.append({**plain(part), "what": what, "wanted": expected})
    target = rule.target
    return {
        "text": rule_text(rule),
        "matches": matches,
        "target": plain(followed(effect_of(target)) if isinstance(target, UnknownTarget) else target),
        "assumed": assumptions(rule.matches),
        "purpose": purpose_json(why) if why else None,
    }


def followed(effect: ForeignTarget) -> ForeignTarget:
    """An effect that the scripts follow; they have no values that a rule leaves open."""
    match effect:
        case AnyMark(where=where):
            return Fixed("UNDECIDED", f"its mark is not known: {where}")
        case ChangeSets(_, mark):
            return Fixed("UNDECIDED" if mark else "CONTINUE", "changes an IP set")
        case Translate(_, address, port, own, last_address, last_port):
            single = (own or address == last_address) and port == last_port
            return effect if single else Fixed("UNDECIDED", "the kernel chooses from a range")
        case ToSelf() | MapPrefix():
            return Fixed("UNDECIDED", "its address or port is not known")
        case _:
            return effect


def plain(value: Any) -> Any:  # noqa: ANN401 (a Record, or what one holds)
    """A value as JSON data."""
    match value:
        case bytes():
            return value.hex()
        case PortRange(low, high):
            return [low, high]
        case Network(address, prefix):
            return {"address": address.hex(), "prefix": prefix}
        case tuple():
            return [plain(each) for each in value]
        case Record():
            return {"is": type(value).__name__, **{field: plain(getattr(value, field)) for field in value._fields}}
        case _:
            return value
