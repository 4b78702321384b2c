"""A packet's path as text for people and as JSON for programs. wording.py describes steps, purposes.py rules."""

from __future__ import annotations

from istio_init.formats.addresses import endpoint_text
from istio_init.formats.iptables_save import rule_text
from istio_init.record import Record
from istio_init.simulate.path import RoutingDecision
from istio_init.simulate.purposes import purpose
from istio_init.simulate.trace_steps import ChainEnd, RuleStep, SkippedTable
from istio_init.simulate.wording import effect, packet_text, why_not

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Literal, TypeAlias

    from istio_init.simulate.path import Leg, PacketPath
    from istio_init.simulate.purposes import Purpose, RuleLocation
    from istio_init.simulate.trace_steps import Trace

    Style: TypeAlias = Literal["title", "hook", "hit", "miss", "purpose", "routing", "fate", "trouble"]

# The text shows at most this many consecutive rules that did not match; JSON has them all.
MOST_MISSES = 6

# Chains that treat every packet alike, so that the jump is the reason.
TAILS = frozenset({"ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_TPROXY", "ISTIO_DIVERT", "ISTIO_DROP"})

ENDS = {
    "outbound": "goes to Envoy's outbound listener",
    "inbound": "goes to Envoy's inbound listener",
    "tunnel": "goes to Envoy's tunnel listener (HBONE)",
    "dns": "goes to the agent's DNS resolver",
    "application": "reaches the pod directly, without the proxy,",
    "wire": "leaves the pod by",
    "forwarded": "is forwarded, out by",
    "dropped": "is dropped",
    "queued": "is passed to a program (NFQUEUE), which decides",
    "undecided": "cannot be followed further",
}

TROUBLE = frozenset({"dropped", "queued", "undecided"})

# Why the trace ends if the last connection reached the proxy without a loop.
OWN_PORT = (
    "The trace ends here: as Istio configures it, Envoy closes a connection to its own port, or it would dial itself."
)
STOPS = {
    "outbound": OWN_PORT,
    "inbound": OWN_PORT,
    "tunnel": "The trace ends here: the request inside the tunnel decides where it goes.",
    "dns": "The trace ends here: at its own port the agent answers, or asks a server that it chooses.",
}


class TextLine(Record):
    """One line of the report: its style, its indentation (in steps of two spaces) and its text."""

    style: Style
    depth: int
    text: str


def fate(leg: Leg, reasons: Mapping[RuleLocation, Purpose]) -> str:
    """Where a leg ended and why, in one sentence."""
    return f"{_destination(leg)}, {because(leg, reasons)}"


def _destination(leg: Leg) -> str:
    """Where a leg ended."""
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
    return words


def because(leg: Leg, reasons: Mapping[RuleLocation, Purpose]) -> str:
    """The reason for a leg's end: the rule that decided and its purpose."""
    if leg.refused or leg.unclear:
        return f"because {leg.refused or leg.unclear}"
    step = leg.decisive
    if policy := leg.policy:
        return f"because the policy of {policy.chain} in {policy.table} is {policy.policy}"
    if step is None:
        return "because no rule applies"
    if step.matched is None and step.failed is not None:
        return f"because {place(step)} cannot be decided: {why_not(step.failed, step.before)}"
    if step.matched is None:
        return f"because {place(step)} cannot be decided: {effect(step)}"
    explaining = _explaining(step)
    why = purpose(reasons, explaining.table, explaining.chain, explaining.rule)
    return f"because {place(explaining)}: {why.text if why else rule_text(explaining.rule)}"


def _explaining(step: RuleStep) -> RuleStep:
    """The rule that explains a decision: the jump, if it led to one of TAILS."""
    return step.via if step.via is not None and step.chain in TAILS else step


def place(step: RuleStep) -> str:
    """A rule's chain, number and, unless it is nat, table."""
    table = "" if step.table == "nat" else f" of {step.table}"
    return f"{step.chain} rule {step.number}{table}"


def verdict(path: PacketPath) -> str:
    """What happens to the packet, in a word or two."""
    first = path.legs[0]
    if path.loop:
        return "loop"
    if first.end in {"dropped", "queued", "undecided"}:
        return first.end
    if first.end in {"application", "wire", "forwarded"}:
        return "not captured"
    return "captured" if first.arrived.redirected or first.arrived.tproxy_port else "addressed to the proxy"


def verdict_line(path: PacketPath, reasons: Mapping[RuleLocation, Purpose]) -> TextLine:
    """The verdict with its reason, and the end of the path."""
    word, legs = verdict(path), path.legs
    text = f"Verdict: {word}"
    text += f", {because(legs[0], reasons)}" if word in TROUBLE else f": {fate(legs[0], reasons)}"
    if path.loop:
        text += f"; what Envoy then sends {ENDS[path.loop]} again, without end"
    elif len(legs) > 1:
        text += f"; what the proxy then sends {_destination(legs[-1])}"
    good = word != "loop" and not {leg.end for leg in legs} & TROUBLE
    return TextLine("fate" if good else "trouble", 0, f"{text}.")


def lines(path: PacketPath, reasons: Mapping[RuleLocation, Purpose], *, steps: bool = False) -> Iterator[TextLine]:
    """The whole path, the verdict first and last; with `steps`, the article's numbers as well."""
    yield verdict_line(path, reasons)
    yield TextLine("hook", 0, "")
    yield from path_lines(path, reasons, steps=steps)
    yield TextLine("hook", 0, "")
    yield verdict_line(path, reasons)


def path_lines(path: PacketPath, reasons: Mapping[RuleLocation, Purpose], *, steps: bool = False) -> Iterator[TextLine]:
    """The path, connection by connection."""
    explained: set[RuleLocation] = set()
    for number, leg in enumerate(path.legs, 1):
        yield from leg_lines(number, leg, reasons, explained, steps=steps)
    if path.loop:
        yield TextLine("trouble", 0, f"LOOP: the packet {ENDS[path.loop]} for the second time, and so on without end.")
    if why := stop(path):
        yield TextLine("routing", 0, why)


def leg_lines(
    number: int, leg: Leg, reasons: Mapping[RuleLocation, Purpose], explained: set[RuleLocation], *, steps: bool = False
) -> Iterator[TextLine]:
    """One leg as lines; `explained` are the rules whose purpose was already printed."""
    if number > 1:
        yield TextLine("hook", 0, "")
    yield TextLine("title", 0, f"{number}. From {leg.sender}: {packet_text(leg.packet)}")
    for each in leg.passed:
        if isinstance(each, RoutingDecision):
            yield _decision_line(each)
        else:
            yield from _hook_lines(each, reasons, explained, steps=steps)
    yield TextLine("trouble" if leg.end in TROUBLE else "fate", 1, f"=> {fate(leg, reasons)}.")


def stop(path: PacketPath) -> str:
    """Why a path ends at the proxy; empty if it ends elsewhere or loops."""
    return "" if path.loop else STOPS.get(path.end, "")


def _decision_line(decision: RoutingDecision) -> TextLine:
    packet = decision.packet
    if decision.refused:
        return TextLine("trouble", 1, "the kernel drops it, whatever the rules are")
    if decision.unclear:
        return TextLine("trouble", 1, "routing: cannot be decided")
    if packet.hook == "INPUT":
        how = f"by its mark and table {decision.by.table}" if decision.by else "for the pod itself"
        return TextLine("routing", 1, f"routing: delivered here, {how}")
    if packet.hook == "FORWARD":
        return TextLine("routing", 1, f"routing: not for the pod itself, forwarded by {packet.out_interface}")
    if packet.hook == "PREROUTING":
        return TextLine("routing", 1, "looped back into the pod by lo")
    if not decision.changed:
        return TextLine("routing", 1, f"routing: leaves by {packet.out_interface or 'an interface'}")
    why = f"its mark and table {decision.by.table}" if decision.by else "its new destination"
    return TextLine("routing", 1, f"routing: leaves by {packet.out_interface} now, because of {why}")


def _hook_lines(
    hook_trace: Trace, reasons: Mapping[RuleLocation, Purpose], explained: set[RuleLocation], *, steps: bool
) -> Iterator[TextLine]:
    if not any(not isinstance(step, ChainEnd) for step in hook_trace.steps):
        yield TextLine("hook", 1, f"{hook_trace.hook}: no rules")
        return
    yield TextLine("hook", 1, hook_trace.hook)
    table, misses = "", 0
    for step in hook_trace.steps:
        if isinstance(step, ChainEnd):
            continue
        if step.table != table:
            table = step.table
            why = f": skipped, {step.why}" if isinstance(step, SkippedTable) else ""
            yield TextLine("hook", 2, f"{table}{why}")
        if isinstance(step, SkippedTable):
            continue
        misses = misses + 1 if step.matched is False else 0
        if misses <= MOST_MISSES or _numbered(step, reasons):
            yield from _rule_lines(step, reasons, explained, steps=steps)
        elif misses == MOST_MISSES + 1:
            yield TextLine("miss", 3 + step.depth, "  ... and further rules that don't match (see --output json)")


def _numbered(step: RuleStep, reasons: Mapping[RuleLocation, Purpose]) -> bool:
    why = purpose(reasons, step.table, step.chain, step.rule)
    return why is not None and bool(why.number)


def _rule_lines(
    step: RuleStep, reasons: Mapping[RuleLocation, Purpose], explained: set[RuleLocation], *, steps: bool
) -> Iterator[TextLine]:
    text = f"{step.number:>3} {rule_text(step.rule)}"
    if step.matched is False and step.failed is not None:
        yield TextLine("miss", 3 + step.depth, f"- {step.chain} {text}   ({why_not(step.failed, step.before)})")
    elif step.matched is None:
        why = why_not(step.failed, step.before) if step.failed else effect(step)
        yield TextLine("trouble", 3 + step.depth, f"? {step.chain} {text}   ({why})")
    else:
        yield TextLine("hit", 3 + step.depth, f"+ {step.chain} {text}   ({effect(step)})")
    why_there = purpose(reasons, step.table, step.chain, step.rule)
    here = (step.table, step.chain, step.rule)
    if why_there is not None and here not in explained and (step.matched or why_there.number):
        explained.add(here)
        yield TextLine("purpose", 5 + step.depth, purpose_text(why_there, steps=steps))


def purpose_text(why: Purpose, *, steps: bool = False) -> str:
    """A purpose in one line: the reason, and where the rule comes from; with `steps`, the article's numbers."""
    facts = [f"rule {why.number} of the nine"] if steps and why.number else []
    facts += [f"the article's step{'s' * (' ' in why.steps)} {why.steps}"] if steps and why.steps else []
    facts += [f"from {', '.join(why.flags)}"] if why.flags else ["in every plan"]
    facts += [f"set by {', '.join(why.annotations)}"] if why.annotations else []
    return f"{why.text} [{'; '.join(facts)}]"
