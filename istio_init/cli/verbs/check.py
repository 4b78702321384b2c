"""`istio-init check`: whether the plan is in place, as an exit code and one line; for probes and scripts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.verbs import ebpf, live_options
from istio_init.cli.verbs.output import CHECK_EXIT_CODES, choice, print_json
from istio_init.cli.verbs.subject import Container, FromSave, Live, Pid, Where, placed, require_no_place, saved_rules
from istio_init.errors import printable
from istio_init.inspect.state import conformance, findings, inspect, inspect_dump, warnings
from istio_init.log import Log
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)

if TYPE_CHECKING:
    from istio_init.inspect.state import Inspection

# The line names at most this many differences.
MOST_SHOWN = 3


def check(
    options: Options,
    *,
    _live: Live = False,
    pid: Pid = None,
    container: Container = None,
    from_save: FromSave = "",
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Check whether the plan is in place: exit 0 if it is, 3 drifted, 4 absent, 1 if that can't be determined."""
    form = choice("--output", output, ("text", "json"))
    log = Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    chosen = placed(options, Where(True, pid, container))
    if from_save:
        require_no_place(chosen)
        rulesets = saved_rules(from_save)
        return _report(inspect_dump(live_options.resolved(chosen, log, rulesets), rulesets, log), form)
    if chosen.capture_backend == "ebpf":
        return ebpf.check(chosen, log, form)
    return _report(inspect(live_options.resolved(chosen, log), log), form)


def _report(inspection: Inspection, form: str) -> int:
    """Print how a namespace compares with the plan; returns the exit code."""
    state, problems = conformance(inspection), findings(inspection)
    code = CHECK_EXIT_CODES[state]
    if form == "json":
        document: dict[str, object] = {
            "state": state,
            "code": code,
            "backend": inspection.backend,
            "findings": list(problems),
        }
        document["warnings"] = list(warnings(inspection))
        print_json("check", document, indent=None)
    else:
        detail = ": no Istio rules found" if state == "absent" else _detail(problems)
        sys.stdout.write(printable(f"{state} ({inspection.backend}){detail}") + "\n")
        sys.stdout.writelines(printable(f"warning: {text}") + "\n" for text in warnings(inspection))
    return code


def _detail(problems: tuple[str, ...]) -> str:
    if not problems:
        return ""
    more = f"; and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
    return f": {'; '.join(problems[:MOST_SHOWN])}{more}"
