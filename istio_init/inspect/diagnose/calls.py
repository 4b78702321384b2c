"""One call that is asked about: which of the causes explain it, or the rule that lets it pass by the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.iptables_save import rule_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.listener_causes import nobody_listens
from istio_init.inspect.diagnose.packets import is_captured
from istio_init.inspect.diagnose.table_causes import refused
from istio_init.simulate.purposes import purpose, purposes
from istio_init.simulate.report import because, verdict

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Situation
    from istio_init.simulate.path import PacketPath

# Causes that matter to a call although it is captured.
BEHIND_CAPTURE = frozenset(
    {"other-ports", "proxy-not-listening", "missing-route", "marked-sources", "proxy-loop", "two-backends"}
    | {"loopback-down", "conntrack-full", "proxy-stopped", "made-twice", "empty-namespace"}
)
# Those of them that are about one direction: that of their own packet.
OF_ONE_DIRECTION = frozenset({"port-taken", "proxy-busy", "proxy-address", "not-transparent", "taken-mark"})
# Causes that explain why calls are not captured, whatever their destination.
OF_ALL_CALLS = frozenset(
    {"host-network", "node-namespace", "mode-none", "not-to-be-captured", "no-rules", "flushed-chain", "foreign-rule"}
    | {"app-as-proxy", "changed-rules", "no-route", "dormant-table", "untracked", "empty-namespace", "made-twice"}
)


def about_call(about: Situation, faults: tuple[Cause, ...], path: PacketPath) -> tuple[Cause, ...]:
    """The causes of a failed or uncaptured call; none if it is captured and arrives."""
    if is_captured(path):
        behind = [each for each in faults if each.name in BEHIND_CAPTURE or _same_direction(each, path)]
        behind += [cause for cause in (refused(path), _at_the_app(about, path)) if cause]
        return tuple(behind)
    explaining = tuple(each for each in faults if each.name in OF_ALL_CALLS)
    return explaining or (_by_rule(about, path),)


def _same_direction(cause: Cause, path: PacketPath) -> bool:
    if cause.name not in OF_ONE_DIRECTION or cause.path is None:
        return False
    first, other = path.legs[0].packet, cause.path.legs[0].packet
    return (first.family, first.hook) == (other.family, other.hook)


def _at_the_app(about: Situation, path: PacketPath) -> Cause | None:
    """Nobody at the port that a captured inbound call is for."""
    packet = path.legs[0].packet
    if path.legs[0].end != "inbound":
        return None
    return nobody_listens(about, packet.destination, packet.destination_port, path)


def _by_rule(about: Situation, path: PacketPath) -> Cause:
    """The rule that decides, with the flag and the annotation that it comes from."""
    first = path.legs[0]
    reasons = purposes(about.options, first.packet.family)
    step = first.decisive
    why = purpose(reasons, step.table, step.chain, step.rule) if step else None
    evidence = [f"{step.table} {step.chain} rule {step.number}: {rule_text(step.rule)}"] if step else []
    sources = [*(why.flags if why else ()), *(why.annotations if why else ())]
    if sources:
        evidence.append(f"it comes from {', '.join(sources)}")
    remedy = f"change {sources[-1]}, and create the pod anew" if sources else "istio-init explain shows each step"
    word = verdict(path)
    title = "this call bypasses the sidecar" if word == "not captured" else f"this call: {word}"
    return Cause("call", title, because(first, reasons).removeprefix("because "), tuple(evidence), (remedy,), path)
