"""`istio-init prove`: checks the options' invariants for all packets, with a counterexample for each broken one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli.pod_owners import with_ipv6
from istio_init.cli.verbs import envoy_flags, packet_flags, who_runs
from istio_init.cli.verbs.output import choice, print_json, show, working
from istio_init.cli.verbs.subject import POD, Container, FromSave, Pid, Where, is_live, pod_addresses, subject
from istio_init.envoy import fit_report
from istio_init.formats.addresses import address_text
from istio_init.formats.iptables_save import rule_text
from istio_init.model.packet import LOOPBACKS
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.planning import plan
from istio_init.simulate.order import unknown_orders
from istio_init.simulate.path import follow
from istio_init.simulate.purposes import purpose, purposes
from istio_init.simulate.report import TextLine, path_lines, purpose_text
from istio_init.simulate.report_json import as_json, purpose_json
from istio_init.simulate.wording import packet_text
from istio_init.verify.proof import prove as prove_rules
from istio_init.verify.proof import with_interfaces
from istio_init.verify.set_products import within_bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.cli.verbs.subject import Subject
    from istio_init.envoy.fit import Fit
    from istio_init.simulate.path import PacketPath
    from istio_init.verify.proof import Proof
    from istio_init.verify.report import DeadRule, Fault


def prove(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Also fail on known faults of Istio's own rules.")] = False,
    pod_address: Annotated[
        str, typer.Option(metavar="ADDRESSES", help="The pod's own addresses; --live reads them.")
    ] = "",
    live: Annotated[
        bool, typer.Option("--live", help="Prove the rules in the kernel, other programs' rules included.")
    ] = False,
    pid: Pid = None,
    container: Container = None,
    from_save: FromSave = "",
    envoy: envoy_flags.Source = "",
    runs_as: packet_flags.RunsAs = "",
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Check the options' invariants for every possible packet; exit 1 if one is broken."""
    form = choice("--output", output, ("text", "json"))
    where = Where(live, pid, container, from_save)
    live = is_live(options, where)
    proxy = envoy_flags.configuration(envoy, options, where) if envoy else None
    if not (live or from_save):
        # A proxy without an IPv6 listener means a pod without IPv6.
        options = with_ipv6(options, default=proxy is None or envoy_flags.has_ipv6(proxy))
    who = who_runs.residents(where)
    about = who_runs.with_proxy(subject(options, where, pod_addresses(pod_address), with_foreign_tables=True), who)
    about = packet_flags.run_as(about, runs_as)
    planned = plan.build(about.options).rulesets
    families = {ruleset.family for ruleset in planned}
    rulesets = tuple(ruleset for ruleset in about.rulesets if ruleset.family in families)
    if not live:
        about = about.replace(facts=with_interfaces(about.facts, about.options, POD.values()))
    # The proof uses the facts alone, without the kernel's route lookup; so does the counterexample's path.
    about = about.replace(
        facts=about.facts.replace(lookup=None, ip_sets=within_bounds(about.facts.ip_sets)), rulesets=rulesets
    )
    with working(f"proving {' and '.join(ruleset.family for ruleset in rulesets) or 'nothing'}"):
        expected = planned if about.has_existing_rules else None
        proof = prove_rules(about.options, rulesets, about.facts, about.envoy, expected)
        ties = [each for ruleset in rulesets for each in unknown_orders(ruleset, about.facts)]
        other = about.facts.replace(others_last=True)
        reverse = prove_rules(about.options, rulesets, other, about.envoy, expected) if ties else proof
    warnings = [*_warnings(about), *_order_warnings(ties, proof, reverse)]
    if misidentified := tuple(who_runs.faults(about, who)):
        names = dict.fromkeys((*proof.invariants, *(fault.invariant for fault in misidentified)))
        proof = proof.replace(faults=(*proof.faults, *misidentified), invariants=tuple(names))
    fit = envoy_flags.fit(about, proxy) if proxy else None
    if form == "json":
        values = _json(proof, about, warnings) | ({"envoy": _fit_json(fit, about)} if fit else {})
        print_json("prove", values)
    else:
        show([*_lines(proof, about, warnings), *(_fit_lines(fit, about) if fit else ())])
    sound = proof.holds and not (strict and proof.faults)
    return 0 if sound and (fit is None or fit.holds) else 1


def _fit_lines(fit: Fit, about: Subject) -> Iterator[TextLine]:
    yield TextLine("hook", 0, "")
    yield from fit_report.lines(fit, partial(purposes, about.options))


def _fit_json(fit: Fit, about: Subject) -> dict[str, Any]:
    return fit_report.as_json(fit, partial(purposes, about.options))


def _path(fault: Fault, about: Subject) -> PacketPath:
    return follow(about.ruleset(fault.family), fault.packet, about.facts, about.envoy)


def _order_warnings(ties: list[str], proof: Proof, reverse: Proof) -> list[str]:
    """The ties of priorities, and what the other order would change."""
    usual, other = ({fault.invariant for fault in each.faults if not fault.known_cause} for each in (proof, reverse))
    broken, held = sorted(other - usual), sorted(usual - other)
    change = "the other order breaks the same claims" if usual else "neither order breaks a claim"
    if broken:
        change = f"the other order breaks: {'; '.join(broken)}"
    elif held:
        change = f"with the other order these hold: {'; '.join(held)}"
    return [f"{tie}: {change}" for tie in ties]


def _lines(proof: Proof, about: Subject, warnings: list[str]) -> Iterator[TextLine]:
    for warning in warnings:
        yield TextLine("trouble", 0, f"warning: {warning}")
    broken = {fault.invariant for fault in proof.faults if not fault.known_cause}
    accepted = {fault.invariant for fault in proof.faults if fault.known_cause} - broken
    for claim in proof.invariants:
        state = "BROKEN" if claim in broken else "known " if claim in accepted else "holds "
        yield TextLine("trouble" if claim in broken else "hit", 0, f"{state} {claim}")
    for fault in proof.faults:
        yield TextLine("hook", 0, "")
        yield TextLine("trouble", 0, f"{'Known fault of Istio' if fault.known_cause else 'Broken'}: {fault.invariant}")
        yield TextLine("purpose", 1, f"expected: {fault.expected}; found: {fault.actual}")
        if fault.known_cause:
            yield TextLine("purpose", 1, fault.known_cause)
            yield TextLine("purpose", 1, f"a packet: {packet_text(fault.packet)}")
            continue
        yield from (
            line.replace(depth=line.depth + 1)
            for line in path_lines(_path(fault, about), purposes(about.options, fault.family))
        )
    if proof.dead_rules:
        yield TextLine("hook", 0, "")
        yield TextLine(
            "title", 0, "Rules that decide nothing for these options (no fault; some of Istio's own rules are such):"
        )
        for dead in proof.dead_rules:
            yield TextLine("miss", 1, _idle_text(dead, about))
    yield TextLine("hook", 0, "")
    counts = f"{len(proof.invariants)} invariants, {proof.packet_classes} packet classes."
    yield TextLine("trouble", 0, f"NOT proved: {counts}") if broken else TextLine("fate", 0, f"Proved: {counts}")


def _warnings(about: Subject) -> list[str]:
    """Properties of the namespace that keep the rules from working."""
    missing = [
        address_text(LOOPBACKS[ruleset.family])
        for ruleset in about.rulesets
        if not about.facts.is_local(LOOPBACKS[ruleset.family])
    ]
    if not missing:
        return []
    return [f"lo has no {' and no '.join(missing)}: is it down? Captured outbound traffic cannot reach Envoy"]


def _idle_text(idle: DeadRule, about: Subject) -> str:
    where = f"{idle.family} {idle.table} {idle.chain}"
    if idle.rule is None:
        return f"{where}: {idle.why}"
    why = purpose(purposes(about.options, idle.family), idle.table, idle.chain, idle.rule)
    text = f"{where} rule {idle.number}: {rule_text(idle.rule)}   ({idle.why})"
    return f"{text} {purpose_text(why)}" if why else text


def _json(proof: Proof, about: Subject, warnings: list[str]) -> dict[str, Any]:
    return {
        "holds": proof.holds,
        "warnings": warnings,
        "claims": list(proof.invariants),
        "flows": proof.packet_classes,
        "faults": [_fault_json(fault, about) for fault in proof.faults],
        "idle": [_idle_json(idle, about) for idle in proof.dead_rules],
    }


def _fault_json(fault: Fault, about: Subject) -> dict[str, Any]:
    reasons = purposes(about.options, fault.family)
    return {
        "claim": fault.invariant,
        "family": fault.family,
        "expected": fault.expected,
        "found": fault.actual,
        "known": fault.known_cause or None,
        "explain": as_json(_path(fault, about), reasons),
    }


def _idle_json(idle: DeadRule, about: Subject) -> dict[str, Any]:
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
