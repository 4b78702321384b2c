"""A journey told: as text for people, as JSON for programs. The words are reasons.py's, the purposes purposes.py's."""

from __future__ import annotations

from istio_init.formats.addresses import address_text, endpoint_text, protocol_text
from istio_init.formats.iptables_save import rule_text
from istio_init.record import Record
from istio_init.simulate.path import Turn
from istio_init.simulate.purposes import purpose
from istio_init.simulate.trace import Ended, Skipped, Step
from istio_init.simulate.wording import effect, packet_text, why_not

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Literal, TypeAlias

    from istio_init.model.packet import Packet
    from istio_init.simulate.path import Journey, Leg
    from istio_init.simulate.purposes import Purpose, RuleLocation
    from istio_init.simulate.trace import Trace

    Style: TypeAlias = Literal["title", "hook", "hit", "miss", "purpose", "turn", "fate", "trouble"]

# Runs of rules that did not match are shown by this many at the beginning; JSON has them all.
MOST_MISSES = 6

# Chains that do the same to whatever reaches them: the reason is the jump.
TAILS = frozenset({"ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_TPROXY", "ISTIO_DIVERT", "ISTIO_DROP"})

ENDS = {
    "outbound": "goes to Envoy's outbound listener",
    "inbound": "goes to Envoy's inbound listener",
    "tunnel": "goes to Envoy's tunnel listener (HBONE)",
    "dns": "goes to the agent's DNS resolver",
    "application": "reaches the pod itself, no proxy in between,",
    "wire": "leaves the pod by",
    "forwarded": "is forwarded, out by",
    "dropped": "is dropped",
    "queued": "is handed to a program (NFQUEUE), which decides",
    "undecided": "can't be followed further",
}

# Why nothing is told of what follows, where the last connection reached the proxy; a loop has its own words.
OWN_PORT = (
    "Nothing follows: Envoy closes a connection to its own port, as Istio configures it, or it would dial itself."
)
STOPS = {
    "outbound": OWN_PORT,
    "inbound": OWN_PORT,
    "tunnel": "What follows is not known: the request inside the tunnel says where it goes.",
    "dns": "What follows is not known: asked by its own port, the agent answers, or asks a server that it chooses.",
}


class Line(Record):
    """One line of the telling: how it is to look, how deep it is indented, and the text."""

    style: Style
    depth: int
    text: str


def fate(leg: Leg, known: Mapping[RuleLocation, Purpose]) -> str:
    """Where a leg ended and why, in one sentence."""
    arrived, words = leg.arrived, ENDS[leg.end]
    if leg.end in {"outbound", "inbound", "tunnel", "dns"}:
        port = arrived.tproxy_port or arrived.destination_port
        kept = ", destination kept" if arrived.tproxy_port else ""
        words = f"{words}, {endpoint_text(arrived.destination, port)}{kept}"
    elif leg.end == "application":
        words = f"{words} at {endpoint_text(arrived.destination, arrived.destination_port)}"
    elif leg.end in {"wire", "forwarded"}:
        destination = endpoint_text(arrived.destination, arrived.destination_port)
        words = f"{words} {arrived.out_interface} to {destination}"
    return f"{words}, {because(leg, known)}"


def because(leg: Leg, known: Mapping[RuleLocation, Purpose]) -> str:
    """The reason for a leg's end: the rule that decided and its purpose."""
    if leg.refused:
        return f"because {leg.refused}"
    step = leg.decisive
    if step is None:
        return "because no rule says otherwise"
    if step.matched is None and step.failed is not None:
        return f"because {place(step)} can't be told: {why_not(step.failed, step.before)}"
    if step.matched is None:
        return f"because {place(step)} can't be told: {effect(step)}"
    told = _telling(step)
    why = purpose(known, told.table, told.chain, told.rule)
    if why is None:
        return f"because {place(told)}: {rule_text(told.rule)}"
    return f"because {place(told)}: {why.text}"


def _telling(step: Step) -> Step:
    """The rule that explains a decision: the jump, where it led to one of the chains that do the same to everything."""
    return step.via if step.via is not None and step.chain in TAILS else step


def place(step: Step) -> str:
    """Where a rule stands, in words."""
    table = "" if step.table == "nat" else f" of {step.table}"
    return f"{step.chain} rule {step.number}{table}"


def lines(journey: Journey, known: Mapping[RuleLocation, Purpose]) -> Iterator[Line]:
    """The whole journey as lines."""
    told: set[RuleLocation] = set()
    for number, leg in enumerate(journey.legs, 1):
        if number > 1:
            yield Line("hook", 0, "")
        yield Line("title", 0, f"{number}. From {leg.sender}: {packet_text(leg.packet)}")
        for each in leg.passed:
            yield from [_turn_line(each)] if isinstance(each, Turn) else _hook_lines(each, known, told)
        good = leg.end not in {"dropped", "queued", "undecided"}
        yield Line("fate" if good else "trouble", 1, f"=> {fate(leg, known)}.")
    if journey.loop:
        yield Line("trouble", 0, f"LOOP: this is the second time that it {ENDS[journey.loop]}; it never ends.")
    if why := stop(journey):
        yield Line("turn", 0, why)


def stop(journey: Journey) -> str:
    """Why a journey ends at the proxy; empty where it ends elsewhere, or never."""
    return "" if journey.loop else STOPS.get(journey.end, "")


def _turn_line(turn: Turn) -> Line:
    packet = turn.packet
    if turn.refused:
        return Line("trouble", 1, "the kernel drops it, whatever the rules")
    if packet.hook == "INPUT":
        how = f"by its mark and table {turn.by.table}" if turn.by else "for the pod itself"
        return Line("turn", 1, f"routing: delivered here, {how}")
    if packet.hook == "FORWARD":
        return Line("turn", 1, f"routing: not for the pod itself, forwarded by {packet.out_interface}")
    if packet.hook == "PREROUTING":
        return Line("turn", 1, "over lo, back into the pod")
    if not turn.changed:
        return Line("turn", 1, f"routing: leaves by {packet.out_interface or 'an interface'}")
    why = f"its mark and table {turn.by.table}" if turn.by else "its new destination"
    return Line("turn", 1, f"routing: leaves by {packet.out_interface} now, because of {why}")


def _hook_lines(met: Trace, known: Mapping[RuleLocation, Purpose], told: set[RuleLocation]) -> Iterator[Line]:
    if not any(not isinstance(step, Ended) for step in met.steps):
        yield Line("hook", 1, f"{met.hook}: no rules")
        return
    yield Line("hook", 1, met.hook)
    table, misses = "", 0
    for step in met.steps:
        if isinstance(step, Ended):
            continue
        if step.table != table:
            table = step.table
            why = f": not asked, {step.why}" if isinstance(step, Skipped) else ""
            yield Line("hook", 2, f"{table}{why}")
        if isinstance(step, Skipped):
            continue
        misses = misses + 1 if step.matched is False else 0
        if misses <= MOST_MISSES or _numbered(step, known):
            yield from _rule_lines(step, known, told)
        elif misses == MOST_MISSES + 1:
            yield Line("miss", 3 + step.depth, "  ... and others that don't match (--output json has them all)")


def _numbered(step: Step, known: Mapping[RuleLocation, Purpose]) -> bool:
    why = purpose(known, step.table, step.chain, step.rule)
    return why is not None and bool(why.number)


def _rule_lines(step: Step, known: Mapping[RuleLocation, Purpose], told: set[RuleLocation]) -> Iterator[Line]:
    text = f"{step.number:>3} {rule_text(step.rule)}"
    if step.matched is False and step.failed is not None:
        yield Line("miss", 3 + step.depth, f"- {step.chain} {text}   ({why_not(step.failed, step.before)})")
    elif step.matched is None:
        why = why_not(step.failed, step.before) if step.failed else effect(step)
        yield Line("trouble", 3 + step.depth, f"? {step.chain} {text}   ({why})")
    else:
        yield Line("hit", 3 + step.depth, f"+ {step.chain} {text}   ({effect(step)})")
    why_there = purpose(known, step.table, step.chain, step.rule)
    here = (step.table, step.chain, step.rule)
    if why_there is not None and here not in told and (step.matched or why_there.number):
        told.add(here)
        yield Line("purpose", 5 + step.depth, purpose_text(why_there))


def purpose_text(why: Purpose) -> str:
    """A purpose in one line: the article's number and steps, the reason, and where the rule comes from."""
    facts = [f"rule {why.number} of the nine"] if why.number else []
    facts += [f"the article's step{'s' * (' ' in why.steps)} {why.steps}"] if why.steps else []
    facts += [f"from {', '.join(why.flags)}"] if why.flags else ["always there"]
    facts += [f"set by {', '.join(why.annotations)}"] if why.annotations else []
    return f"{why.text} [{'; '.join(facts)}]"


def as_json(journey: Journey, known: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    """The whole journey as plain dicts, lists, strings and numbers."""
    return {
        "legs": [_leg_json(leg, known) for leg in journey.legs],
        "end": journey.end,
        "loop": journey.loop or None,
        "stop": stop(journey) or None,
        "fate": fate(journey.legs[-1], known),
    }


def _leg_json(leg: Leg, known: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    return {
        "sender": leg.sender,
        "packet": packet_json(leg.packet),
        "way": [_turn_json(each) if isinstance(each, Turn) else _hook_json(each, known) for each in leg.passed],
        "end": leg.end,
        "arrived": packet_json(leg.arrived),
        "fate": fate(leg, known),
    }


def packet_json(packet: Packet) -> dict[str, Any]:
    """A packet with its addresses and protocol in text."""
    plain = {field: getattr(packet, field) for field in packet._fields}
    plain["source"], plain["destination"] = address_text(packet.source), address_text(packet.destination)
    plain["protocol"] = protocol_text(packet.protocol)
    del plain["called"]
    return plain


def _turn_json(turn: Turn) -> dict[str, Any]:
    return {
        "routing": turn.packet.hook,
        "in_interface": turn.packet.in_interface,
        "out_interface": turn.packet.out_interface,
        "changed": turn.changed,
        "refused": turn.refused or None,
        "policy_rule": {"mark": turn.by.mark, "table": turn.by.table} if turn.by else None,
    }


def _hook_json(met: Trace, known: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    return {"hook": met.hook, "outcome": met.outcome, "steps": [_step_json(step, known) for step in met.steps]}


def _step_json(step: Step | Ended | Skipped, known: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    if isinstance(step, Skipped):
        return {"table": step.table, "skipped": step.why}
    if isinstance(step, Ended):
        return {"table": step.table, "chain": step.chain, "back_to": step.to or None, "policy": step.policy or None}
    why = purpose(known, step.table, step.chain, step.rule)
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
