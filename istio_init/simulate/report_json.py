"""A packet's path as values for JSON."""

from __future__ import annotations

from istio_init.formats.addresses import address_text, protocol_text
from istio_init.formats.iptables_save import rule_text
from istio_init.simulate.path import RoutingDecision
from istio_init.simulate.purposes import purpose
from istio_init.simulate.report import fate, stop, verdict
from istio_init.simulate.trace_steps import ChainEnd, RuleStep, SkippedTable
from istio_init.simulate.wording import effect, value_text, why_not

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Literal, TypeAlias

    from istio_init.model.packet import Packet
    from istio_init.simulate.path import Leg, PacketPath
    from istio_init.simulate.purposes import Purpose, RuleLocation
    from istio_init.simulate.trace_steps import Trace

    Style: TypeAlias = Literal["title", "hook", "hit", "miss", "purpose", "routing", "fate", "trouble"]


def as_json(path: PacketPath, reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    """The whole path as plain dicts, lists, strings and numbers."""
    return {
        "legs": [leg_json(leg, reasons) for leg in path.legs],
        "verdict": verdict(path),
        "end": path.end,
        "loop": path.loop or None,
        "stop": stop(path) or None,
        "fate": fate(path.legs[-1], reasons),
    }


def leg_json(leg: Leg, reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    """One leg as a plain dict."""
    return {
        "sender": leg.sender,
        "packet": packet_json(leg.packet),
        "way": [
            _decision_json(each) if isinstance(each, RoutingDecision) else _hook_json(each, reasons)
            for each in leg.passed
        ],
        "end": leg.end,
        "arrived": packet_json(leg.arrived),
        "fate": fate(leg, reasons),
    }


def packet_json(packet: Packet) -> dict[str, Any]:
    """A packet with its addresses and protocol in text."""
    plain = {field: getattr(packet, field) for field in packet._fields}
    plain["source"], plain["destination"] = address_text(packet.source), address_text(packet.destination)
    plain["protocol"] = protocol_text(packet.protocol)
    del plain["called"]
    del plain["unclear"]
    if packet.unclear:
        plain["unclear"] = {each.field: value_text(packet, each.field) for each in packet.unclear}
    return plain


def _decision_json(decision: RoutingDecision) -> dict[str, Any]:
    unclear = {"unclear": decision.unclear} if decision.unclear else {}
    return {
        **unclear,
        "routing": decision.packet.hook,
        "in_interface": decision.packet.in_interface,
        "out_interface": decision.packet.out_interface,
        "changed": decision.changed,
        "refused": decision.refused or None,
        "policy_rule": {"mark": decision.by.mark, "table": decision.by.table} if decision.by else None,
    }


def _hook_json(hook_trace: Trace, reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    return {
        "hook": hook_trace.hook,
        "outcome": hook_trace.outcome,
        "steps": [_step_json(step, reasons) for step in hook_trace.steps],
    }


def _step_json(step: RuleStep | ChainEnd | SkippedTable, reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    if isinstance(step, SkippedTable):
        return {"table": step.table, "skipped": step.why}
    if isinstance(step, ChainEnd):
        return {"table": step.table, "chain": step.chain, "back_to": step.to or None, "policy": step.policy or None}
    why = purpose(reasons, step.table, step.chain, step.rule)
    return {
        "table": step.table,
        "chain": step.chain,
        "number": step.number,
        "rule": rule_text(step.rule),
        "matched": step.matched,
        "why": why_not(step.failed, step.before) if step.failed else effect(step),
        "purpose": purpose_json(why) if why else None,
    }


def purpose_json(why: Purpose) -> dict[str, Any]:
    """A purpose as a plain dict."""
    return {
        "concern": why.concern,
        "text": why.text,
        "number": int(why.number) if why.number else None,
        "steps": why.steps or None,
        "flags": list(why.flags),
        "annotations": list(why.annotations),
    }
