"""Causes in the tables: rules made twice, dormant tables, untracked calls, and calls that other rules refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.iptables_save import rule_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import answer, broken, calls_in, calls_out, has_global, is_captured
from istio_init.model.foreign import NoTrack
from istio_init.model.rules import OWN_CHAINS
from istio_init.model.unknown import UnknownTarget
from istio_init.planning.capture import uses_tproxy
from istio_init.simulate.foreign_targets import effect_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.diagnose.case import Situation
    from istio_init.model.rules import Family
    from istio_init.simulate.path import PacketPath
    from istio_init.simulate.trace_steps import RuleStep

MOST_SHOWN = 3
DORMANT = " (dormant)"
# Chains of which each has one rule for all that reaches it.
ENDS = ("ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_TPROXY")
TWICE = "two init containers, an init container beside the CNI plugin, or iptables-restore --noflush"


def made_twice(about: Situation) -> Cause | None:
    """The rules of two runs, one behind the other."""
    double = [
        (ruleset.family, table.name, chain.name, [rule_text(rule) for rule in chain.rules])
        for ruleset in about.chosen
        for table in ruleset.tables
        for chain in table.chains
        if chain.name in ENDS and len(chain.rules) > len(_planned(about, ruleset.family, table.name, chain.name)) > 0
    ]
    if not double:
        return None
    family, table, name, texts = double[0]
    same = len(set(texts)) < len(texts)
    return Cause(
        "made-twice",
        "the rules are those of two runs; only the first of each kind counts",
        f"the rules were made twice{'' if same else ', with different options'}: {TWICE}",
        tuple(f"{family} {table} {name} rule {number}: {text}" for number, text in enumerate(texts, 1))[:MOST_SHOWN],
        (
            "leave one of the two; kubectl get pod POD -o yaml lists the init containers",
            "then create the pod anew, or: istio-init clean --netns PATH, and one istio-init apply",
        ),
    )


def _planned(about: Situation, family: Family, table: str, name: str) -> tuple[object, ...]:
    planned = about.plan.ruleset(family)
    planned_table = planned.table(table) if planned else None  # type: ignore[arg-type]
    chain = planned_table.chain(name) if planned_table else None
    return chain.rules if chain else ()


def dormant_table(about: Situation) -> Cause | None:
    """A table of nftables that is switched off with all of its rules."""
    names = dict.fromkeys(
        f"{ruleset.family} {table.name}"
        for ruleset in about.chosen
        for table in ruleset.tables
        if any(chain.name.endswith(DORMANT) for chain in table.chains)
    )
    if not names:
        return None
    return Cause(
        "dormant-table",
        "calls bypass the sidecar",
        f"a table with Istio's rules is dormant, its chains have no hooks: {', '.join(names)}",
        tuple(f"{each} has the flag dormant" for each in names),
        ("nft add table FAMILY NAME without flags dormant wakes it; or istio-init apply --reconcile",),
        broken(about),
    )


def untracked(about: Situation) -> Cause | None:
    """A rule that keeps calls from connection tracking: nat never sees them."""
    for family in about.families:
        for path in (calls_out(about, family), calls_in(about, family)):
            for step in _taken(path) if path and not is_captured(path) else ():
                if _is_notrack(step):
                    return Cause(
                        "untracked",
                        "calls bypass the sidecar",
                        f"a rule of another program keeps calls from connection tracking, in {step.table} {step.chain}",
                        (
                            f"{family} {step.table} {step.chain} rule {step.number}: {rule_text(step.rule)}",
                            "nat redirects tracked connections only",
                        ),
                        ("remove the rule, or narrow it to what is not to be captured",),
                        path,
                    )
    return None


def _taken(path: PacketPath) -> Iterator[RuleStep]:
    return (step for trace in path.legs[0].traces for step in trace.rules if step.matched)


def _is_notrack(step: RuleStep) -> bool:
    target = step.rule.target
    return isinstance(target, UnknownTarget) and isinstance(effect_of(target), NoTrack)


def lost_mark(about: Situation) -> Cause | None:
    """TPROXY, and another program's rule that changes the mark by which the app's answers return to the sidecar."""
    if not uses_tproxy(about.options) or about.missing or not about.backends:
        return None
    for family in about.families:
        path = answer(about, family) if has_global(about.facts, family) else None
        if path is None or path.legs[0].end not in {"wire", "dropped"}:
            continue
        changes = [step for each in path.legs[0].traces for step in each.rules if step.before.mark != step.after.mark]
        if not changes or changes[-1].chain in OWN_CHAINS:
            continue
        step = changes[-1]
        return Cause(
            "lost-mark",
            "inbound calls hang: the app's answers do not return to the sidecar",
            f"a rule of another program changes TPROXY's mark, in {step.table} {step.chain}",
            (
                f"{family} {step.table} {step.chain} rule {step.number}: {rule_text(step.rule)}",
                f"the mark {step.before.mark} becomes {step.after.mark}, and the answer leaves the pod",
            ),
            ("have the program keep the bits of Istio's mark (--set-mark VALUE/MASK), or choose another: -t",),
            path,
        )
    return None


def refused_call(about: Situation) -> Cause | None:
    """Another program's rule that drops what the sidecar sends because of a captured call."""
    paths = (path for family in about.families for path in (calls_out(about, family), calls_in(about, family)) if path)
    return next((cause for path in paths if (cause := refused(path))), None)


def refused(path: PacketPath) -> Cause | None:
    """The rule that drops what the sidecar sends because of this call; None if it arrives."""
    leg = next((each for each in path.legs[1:] if each.end == "dropped"), None)
    step = leg.decisive if leg else None
    whom = "the app" if path.legs[0].end == "inbound" else "the world"
    if leg is not None and leg.refused:
        return Cause(
            "refused-call", "captured calls fail: the sidecar's own are dropped",
            f"the kernel drops the sidecar's calls to {whom}", (f"uid {leg.packet.uid}: {leg.refused}",),
            ("look at ip rule and ip route in the pod: is there one for the sidecar's user (uidrange)?",), path,
        )  # fmt: skip
    if leg is None or step is None or not step.drops or step.chain in OWN_CHAINS:
        return None
    return Cause(
        "refused-call",
        "captured calls fail: the sidecar's own are dropped",
        f"a rule of another program drops the sidecar's calls to {whom}, in {step.table} {step.chain}",
        (f"{leg.packet.family} {step.table} {step.chain} rule {step.number}: {rule_text(step.rule)}",),
        ("remove the rule, or have its program leave captured traffic and the sidecar's calls alone",),
        path,
    )
