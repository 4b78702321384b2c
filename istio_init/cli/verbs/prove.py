"""`istio-init prove`: all packets at once, and a packet for whatever is not as the options promise."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli.verbs.output import choice, show
from istio_init.cli.verbs.subject import POD, LiveContainer, LiveNetns, LivePid, Where, pod_addresses, subject
from istio_init.formats.iptables_save import rule_text
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.planning import plan
from istio_init.simulate.path import follow
from istio_init.simulate.purposes import purpose, purposes
from istio_init.simulate.report import Line, as_json, lines, purpose_json, purpose_text
from istio_init.simulate.wording import packet_text
from istio_init.verify.proof import prove as prove_rules
from istio_init.verify.proof import with_interfaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.cli.verbs.subject import Subject
    from istio_init.simulate.path import Journey
    from istio_init.verify.proof import Proof
    from istio_init.verify.report import Fault, Idle


def prove(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Faults of Istio's own rules count, too.")] = False,
    pod_address: Annotated[str, typer.Option(metavar="ADDRESSES", help="The pod's own addresses; --live looks.")] = "",
    live: Annotated[bool, typer.Option("--live", help="Prove what the kernel holds, others' rules included.")] = False,
    pid: LivePid = None,
    netns: LiveNetns = None,
    container: LiveContainer = None,
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Hold what the options promise against every packet there can be; exit 1 where a packet breaks it."""
    form = choice("--output", output, ("text", "json"))
    if options.enable_ipv6 is None and not live:
        options = options.replace(enable_ipv6=True)
    about = subject(options, Where(live, pid, netns, container), pod_addresses(pod_address))
    planned = plan.build(about.options).rulesets
    wanted = {ruleset.family for ruleset in planned}
    rulesets = tuple(ruleset for ruleset in about.rulesets if ruleset.family in wanted)
    if not live:
        about = about.replace(facts=with_interfaces(about.facts, about.options, POD.values()))
    proof = prove_rules(about.options, rulesets, about.facts, about.envoy, planned if live else None)
    if form == "json":
        sys.stdout.write(json.dumps(_json(proof, about), indent=2) + "\n")
    else:
        show(_lines(proof, about))
    return 0 if proof.holds and not (strict and proof.faults) else 1


def _journey(fault: Fault, about: Subject) -> Journey:
    return follow(about.ruleset(fault.family), fault.packet, about.facts, about.envoy)


def _lines(proof: Proof, about: Subject) -> Iterator[Line]:
    broken = {fault.claim for fault in proof.faults if not fault.known}
    known = {fault.claim for fault in proof.faults if fault.known} - broken
    for claim in proof.claims:
        state = "BROKEN" if claim in broken else "known " if claim in known else "holds "
        yield Line("trouble" if claim in broken else "hit", 0, f"{state} {claim}")
    for fault in proof.faults:
        yield Line("hook", 0, "")
        yield Line("trouble", 0, f"{'Known of Istio' if fault.known else 'Broken'}: {fault.claim}")
        yield Line("purpose", 1, f"expected: {fault.expected}; found: {fault.found}")
        if fault.known:
            yield Line("purpose", 1, fault.known)
            yield Line("purpose", 1, f"a packet: {packet_text(fault.packet)}")
            continue
        yield from (
            line.replace(depth=line.depth + 1)
            for line in lines(_journey(fault, about), purposes(about.options, fault.family))
        )
    if proof.idle:
        yield Line("hook", 0, "")
        yield Line("title", 0, "Deciding nothing for these options (no fault; some of Istio's own are such):")
        for idle in proof.idle:
            yield Line("miss", 1, _idle_text(idle, about))
    yield Line("hook", 0, "")
    counted = f"{len(proof.claims)} claims, {proof.flows} sets of packets that fare apart."
    yield Line("trouble", 0, f"NOT proved: {counted}") if broken else Line("fate", 0, f"Proved: {counted}")


def _idle_text(idle: Idle, about: Subject) -> str:
    where = f"{idle.family} {idle.table} {idle.chain}"
    if idle.rule is None:
        return f"{where}: {idle.why}"
    why = purpose(purposes(about.options, idle.family), idle.table, idle.chain, idle.rule)
    text = f"{where} rule {idle.number}: {rule_text(idle.rule)}   ({idle.why})"
    return f"{text} {purpose_text(why)}" if why and why.number else text


def _json(proof: Proof, about: Subject) -> dict[str, Any]:
    return {
        "holds": proof.holds,
        "claims": list(proof.claims),
        "flows": proof.flows,
        "faults": [_fault_json(fault, about) for fault in proof.faults],
        "idle": [_idle_json(idle, about) for idle in proof.idle],
    }


def _fault_json(fault: Fault, about: Subject) -> dict[str, Any]:
    known = purposes(about.options, fault.family)
    return {
        "claim": fault.claim,
        "family": fault.family,
        "expected": fault.expected,
        "found": fault.found,
        "known": fault.known or None,
        "explain": as_json(_journey(fault, about), known),
    }


def _idle_json(idle: Idle, about: Subject) -> dict[str, Any]:
    why = purpose(purposes(about.options, idle.family), idle.table, idle.chain, idle.rule) if idle.rule else None
    return {
        "family": idle.family,
        "table": idle.table,
        "chain": idle.chain,
        "number": idle.number or None,
        "rule": rule_text(idle.rule) if idle.rule else None,
        "why": idle.why,
        "purpose": purpose_json(why) if why else None,
    }
