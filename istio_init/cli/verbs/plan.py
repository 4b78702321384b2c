"""`istio-init plan`: the difference between current and desired rules, and what a run would do. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli.verbs import ebpf
from istio_init.cli.verbs.output import choice, print_json, show
from istio_init.cli.verbs.subject import Container, Live, Pid, Where, placed
from istio_init.inspect.diff import folded, hunks, inet_hunks, routing_hunk
from istio_init.inspect.state import conformance, findings, forecast, inspect
from istio_init.log import Log
from istio_init.model.routing import command
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.simulate.report import TextLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.diff import Hunk
    from istio_init.inspect.state import BackendState, Forecast, Inspection
    from istio_init.model.compare import TableChange
    from istio_init.planning.changes import Changes
    from istio_init.simulate.report import Style

STYLES: dict[str, Style] = {"+": "hit", "-": "trouble", " ": "miss"}


def plan(
    options: Options,
    *,
    _live: Live = False,
    pid: Pid = None,
    container: Container = None,
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Show how the current rules differ from these options', and what an apply would do. Changes nothing."""
    form = choice("--output", output, ("text", "json"))
    log = Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    chosen = placed(options, Where(True, pid, container))
    if chosen.capture_backend == "ebpf":
        return ebpf.plan(chosen, log, form)
    inspection = inspect(chosen, log)
    result = forecast(inspection)
    if form == "json":
        print_json("plan", as_json(inspection, result))
    else:
        show(lines(inspection, result))
    return 0


def lines(inspection: Inspection, result: Forecast) -> Iterator[TextLine]:
    """The lines of the text output."""
    yield TextLine("title", 0, f"{conformance(inspection)} ({inspection.backend}: {inspection.why})")
    for _, hunk in _hunks(result):
        yield TextLine("hook", 0, "")
        yield TextLine("hook", 0, hunk.place)
        for sign, text in folded(hunk.lines):
            yield TextLine(STYLES[sign], 1, f"{sign} {text}")
    yield TextLine("hook", 0, "")
    yield from _actions(inspection, result)


def _actions(inspection: Inspection, result: Forecast) -> Iterator[TextLine]:
    """What a run would do, in order."""
    verb = "clean" if inspection.options.cleanup_only else "apply"
    if result.action == "nothing":
        yield TextLine("fate", 0, f"{verb} would do nothing: {result.why}")
        return
    if result.action == "refuse":
        yield TextLine("trouble", 0, f"{verb} refuses without --reconcile: {result.why}")
        yield TextLine("title", 0, f"{verb} --reconcile would, in this order:")
    else:
        yield TextLine("title", 0, f"{verb} would ({result.why}), in this order:")
    steps = [step for target, changes in result.changes for step in _steps(target, changes)]
    for number, step in enumerate(steps, 1):
        yield TextLine("routing", 1, f"{number}. {step}")


def _steps(target: BackendState, changes: Changes) -> Iterator[str]:
    yield from (command(entry) for entry in changes.add)
    together = ", all in one transaction" if target.backend != "legacy" and len(changes.tables) > 1 else ""
    for change in changes.tables:
        where = f"{target.backend} {change.family} {change.name}"
        if change.desired is None:
            yield f"remove Istio rules from {where}{together}"
        else:
            yield f"write {where}: {_count(change)} rules{together}"
    yield from (command(entry, "del") for entry in reversed(changes.drop))


def _count(change: TableChange) -> int:
    return sum(chain.count for chain in change.desired.chains) if change.desired else 0


def _hunks(result: Forecast) -> Iterator[tuple[str, Hunk]]:
    """Each hunk with its backend; routing comes last, without a backend."""
    for target, changes in result.changes:
        native = target.backend == "native"
        differences = inet_hunks(target.rulesets, target.inet, changes) if native else hunks(target.rulesets, changes)
        yield from ((target.backend, hunk) for hunk in differences)
    if routing := routing_hunk(changes for _, changes in result.changes):
        yield "", routing


def as_json(inspection: Inspection, result: Forecast) -> dict[str, Any]:
    """The JSON document."""
    return {
        "state": conformance(inspection),
        "backend": inspection.backend,
        "why": inspection.why,
        "findings": list(findings(inspection)),
        "diff": [
            {
                "backend": backend or None,
                "family": hunk.family or None,
                "table": hunk.table,
                "chain": hunk.chain or None,
                "lines": [sign + text for sign, text in hunk.lines],
            }
            for backend, hunk in _hunks(result)
        ],
        "apply": {
            "does": result.action,
            "why": result.why,
            "steps": [
                {
                    "backend": target.backend,
                    "add": [command(entry) for entry in changes.add],
                    "tables": [
                        {"family": change.family, "table": change.name, "rules": _count(change)}
                        for change in changes.tables
                    ],
                    "remove": [command(entry, "del") for entry in reversed(changes.drop)],
                }
                for target, changes in result.changes
            ],
        },
    }
