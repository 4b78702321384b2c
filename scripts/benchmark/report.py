"""What the benchmark says: tables in Markdown that read well in a terminal, or one JSON document."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ebpf import LIMITS
from .figures import milliseconds, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .growth import Point
    from .processes import Measured


def machine(python: str) -> dict[str, Any]:
    """Where the figures come from."""
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True)
    return {
        "processor": processors[0].partition(":")[2].strip() if processors else platform.machine(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": f"{version.stdout.split()[1]} at {python}",
        "load": [round(load, 2) for load in os.getloadavg()],
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a benchmark found out.

    `results` are by table, then by contender; each table's were measured in rounds of their own. `bare` is the empty
    program's time in milliseconds, beside the points. Who is `left_out` could not take part on this machine, who
    `failed` could not do the job: by name, with the reason. `ebpf` are the steps of capture by eBPF: seconds on the
    clock and of processor time.
    """

    machine: Mapping[str, Any]
    rounds: int
    results: Mapping[str, Mapping[str, Measured]]
    points: Sequence[Point]
    bare: float
    left_out: Mapping[str, str]
    failed: Mapping[str, str]
    ebpf: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def sections(outcome: Outcome) -> dict[str, str]:
    """The machine and the tables, by the names that they have in docs/speed.md."""
    facts = outcome.machine
    machine = (
        f"{facts['processors']} x {facts['processor']}, Linux {facts['kernel']}, Python {facts['python']}; medians of "
        f"{outcome.rounds} interleaved rounds, in brackets the quartiles; load average {facts['load'][0]} before."
    )
    contents = {"machine": machine}
    contents |= {group: runs(results) for group, results in outcome.results.items()}
    if outcome.points:
        contents["growth"] = growth(outcome.points)
    if outcome.ebpf:
        contents["ebpf"] = steps(outcome.ebpf)
    return contents


def text(outcome: Outcome) -> str:
    """The machine, the tables, and who is not in them."""
    parts = list(sections(outcome).values())
    parts += [f"left out: {name}: {reason}" for name, reason in outcome.left_out.items()]
    parts += [f"failed: {name}: {reason}" for name, reason in outcome.failed.items()]
    return "\n\n".join(parts)


def filled(page: str, contents: Mapping[str, str]) -> str:
    """A page with what is between `<!-- bench: NAME -->` and `<!-- end -->` made new, for each name in `contents`."""
    for name, content in contents.items():
        begin, end = f"<!-- bench: {name} -->\n", "<!-- end -->"
        before, mark, rest = page.partition(begin)
        if not mark or end not in rest:
            raise ValueError(f"the page has no place for {name}: {begin.strip()} ... {end}")
        page = f"{before}{mark}{content}\n{rest[rest.index(end) :]}"
    return page


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the heading, as an aligned Markdown table; all but the first column to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = "| " + " | ".join("-" * width if not n else "-" * (width - 1) + ":" for n, width in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def runs(results: Mapping[str, Measured]) -> str:
    """A row for each contender, against the bare interpreter."""
    bare = results["bare"]
    rows = [["", "ms", "x bare", "processor time, x bare", "instructions, x bare", "peak MB", "x bare"]]
    for name, result in results.items():
        weight = statistics.median(result.memory)
        what = f" ({result.contender.what})" if result.contender.what else ""
        rows.append(
            [
                name + what,
                f"{milliseconds(result.wall):.1f}",
                str(ratio(result.wall, bare.wall)),
                f"{ratio(result.cpu, bare.cpu).median:.2f}",
                f"{result.instructions / bare.instructions:.2f}" if result.instructions else "",
                f"{weight / 1024:.1f}",
                f"{weight / statistics.median(bare.memory):.2f}",
            ]
        )
    if not any(result.instructions for result in results.values()):
        for row in rows:
            del row[4]
    return table(rows)


def steps(seconds: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A row for each step of capture by eBPF, with what it may take."""
    rows = [["", "ms", "quickest, ms", "processor time, ms", "may take, ms"]]
    for step, runs in seconds.items():
        clock, processor = zip(*runs, strict=True)
        figures = (milliseconds(clock), min(clock) * 1000, milliseconds(processor))
        rows.append([step, *(f"{figure:.2f}" for figure in figures), f"{LIMITS[step]:.0f}"])
    return table(rows)


def growth(points: Sequence[Point]) -> str:
    """A row for each kind and count, against iptables-legacy-restore."""
    rows = [["excluded", "ms", "restore, ms", "x restore", "in place, ms", "x apply", "peak MB", "restore, MB"]]
    rows += [
        [
            f"{point.count:,} {point.kind}",
            f"{point.apply:.1f}",
            f"{point.restore:.1f}",
            str(point.apply_to_restore),
            f"{point.in_place:.1f}",
            str(point.in_place_to_apply),
            f"{max(point.apply_memory, point.in_place_memory) / 1024:.1f}",
            f"{point.restore_memory / 1024:.1f}",
        ]
        for point in points
    ]
    return table(rows)


def document(outcome: Outcome) -> str:
    """Everything as JSON: seconds and kilobytes of every run, and the figures made of them."""
    contenders = [
        {
            "table": group,
            "name": name,
            "what": result.contender.what,
            "seconds": result.wall,
            "processor_seconds": result.cpu,
            "kilobytes": result.memory,
            "instructions": result.instructions,
            "ratio": asdict(ratio(result.wall, results["bare"].wall)),
            "processor_ratio": asdict(ratio(result.cpu, results["bare"].cpu)),
            "memory_ratio": statistics.median(result.memory) / statistics.median(results["bare"].memory),
        }
        for group, results in outcome.results.items()
        for name, result in results.items()
    ]
    everything = {
        "machine": outcome.machine,
        "rounds": outcome.rounds,
        "contenders": contenders,
        "growth": [asdict(point) for point in outcome.points],
        "left_out": outcome.left_out,
        "failed": outcome.failed,
        "ebpf": outcome.ebpf,
    }
    return json.dumps(everything, indent=2)
