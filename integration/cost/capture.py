"""What the capture costs a request: the same request through no capture and through each kind of it, in turns.

Run by scripts/capture-cost. All pods run at once and are asked in turns, so that whatever else the machine does
falls on all of them alike; the result is ratios, not milliseconds.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from integration.containers.serving import get
from integration.cost import nature
from integration.cost.pods import Fast, running
from integration.kit.endpoints import Address

ROUNDS, REQUESTS = 60, 50


class Scenario(NamedTuple):
    """One row: how a request goes, and which end asks."""

    title: str
    mesh: str
    inbound: bool
    open_door: bool = False


SCENARIOS = (
    Scenario("inbound, no rules", "none", inbound=True),
    Scenario("inbound, rules present, the port excluded", "excluded", inbound=True),
    Scenario("inbound, no rules, Envoy addressed by its port", "none", inbound=True, open_door=True),
    Scenario("inbound, REDIRECT", "redirect", inbound=True),
    Scenario("inbound, TPROXY", "tproxy", inbound=True),
    Scenario("inbound, REDIRECT as native nftables", "native", inbound=True),
    Scenario("inbound, eBPF", "ebpf", inbound=True),
    Scenario("inbound, eBPF with -m TPROXY", "ebpf-tproxy", inbound=True),
    Scenario("outbound, no rules", "none", inbound=False),
    Scenario("outbound, rules present, the port excluded", "excluded", inbound=False),
    Scenario("outbound, REDIRECT", "redirect", inbound=False),
    Scenario("outbound, TPROXY", "tproxy", inbound=False),
    Scenario("outbound, REDIRECT as native nftables", "native", inbound=False),
    Scenario("outbound, eBPF", "ebpf", inbound=False),
    Scenario("outbound, eBPF with -m TPROXY", "ebpf-tproxy", inbound=False),
)
P99 = "p99"
FIGURES = ("requests/s", "p50", P99, "processor time")


class Measured(NamedTuple):
    """What came of one row.

    `seconds` are those of each request, by round. `processor` is the processor time of a request in each round, in
    seconds, of all that take part. `entries` are the conntrack entries that one request makes in the pod.
    """

    seconds: list[list[float]]
    processor: list[float]
    entries: float


def measure(meshes: dict[str, Fast], rounds: int, requests: int) -> dict[Scenario, Measured]:
    """Ask each row `requests` times in each of the rounds, a new connection each, one at a time."""
    for row in SCENARIOS:
        _durations(row, meshes[row.mesh], requests)
    measured = {row: Measured([], [], _entries(row, meshes[row.mesh], requests)) for row in SCENARIOS}
    order = random.Random(0)
    for _ in range(rounds):
        # In another order each time: who comes first pays for who came before.
        for row in order.sample(SCENARIOS, len(SCENARIOS)):
            mesh = meshes[row.mesh]
            before = _processor_time(mesh)
            measured[row].seconds.append(_durations(row, mesh, requests))
            measured[row].processor.append((_processor_time(mesh) - before) / requests)
    return measured


def _processor_time(mesh: Fast) -> float:
    """Seconds that the client, which is this process, and the Envoys have worked, with the kernel on their behalf."""
    return time.process_time() + sum(each.processor_time() for each in mesh.envoys) / 1e9


def _durations(row: Scenario, mesh: Fast, requests: int) -> list[float]:
    """How long each request took, in seconds."""
    taken = []
    for _ in range(requests):
        client = mesh.outside() if row.inbound else mesh.inside()
        begin = time.perf_counter()
        assert get(client, _target(row, mesh)) == "responder_ipv4"
        taken.append(time.perf_counter() - begin)
    return taken


def _target(row: Scenario, mesh: Fast) -> Address:
    if row.open_door:
        return mesh.open_door
    return mesh.to_app if row.inbound else mesh.to_upstream


def _entries(row: Scenario, mesh: Fast, requests: int) -> float:
    """The conntrack entries in the pod's namespace that a request leaves, on average."""
    mesh.pod.namespace.run("conntrack", "--flush")
    _durations(row, mesh, requests)
    return int(mesh.pod.namespace.run("conntrack", "--count")) / requests


def table(measured: dict[Scenario, Measured]) -> str:
    """The result in Markdown; each direction is compared with its own first row."""
    lines = [
        f"| a request on its own connection | {' | '.join(FIGURES)} | conntrack entries |",
        f"| --- |{' ---: |' * (len(FIGURES) + 1)}",
    ]
    for row, result in measured.items():
        first = measured[next(each for each in SCENARIOS if each.inbound == row.inbound)]
        lines.append(f"| {row.title} | {' | '.join(ratios(result, first))} | {result.entries:.1f} |")
    return "\n".join(lines)


def costs(measured: dict[Scenario, Measured]) -> dict[str, list[str]]:
    """FIGURES of each kind of capture that is compared, in relation to REDIRECT's, by its title; without the tail."""
    by_pod = {(row.mesh, row.inbound): result for row, result in measured.items() if not row.open_door}
    rows: dict[str, list[str]] = {}
    for inbound, direction in ((True, "inbound"), (False, "outbound")):
        columns = [ratios(by_pod[name, inbound], by_pod["redirect", inbound]) for name in nature.COLUMNS]
        for figure, row in zip(FIGURES, zip(*columns, strict=True), strict=True):
            if figure != P99:
                rows[f"{direction}: {figure}, REDIRECT = 1"] = [*row]
    return rows


def ratios(result: Measured, first: Measured) -> list[str]:
    """Each of FIGURES, in relation to another row's."""
    return [f"{figure(result) / figure(first):.2f}" for figure in (_rate, _p50, _p99, _processor)]


def _rate(result: Measured) -> float:
    seconds = _undisturbed(result)
    return len(seconds) / sum(seconds)


def _p50(result: Measured) -> float:
    return statistics.median(_undisturbed(result))


def _p99(result: Measured) -> float:
    return statistics.quantiles(chain.from_iterable(result.seconds), n=100)[98]


def _processor(result: Measured) -> float:
    return statistics.mean(sorted(result.processor)[: _quarter(result)])


def _undisturbed(result: Measured) -> list[float]:
    """The requests of the fastest quarter of the rounds: other work on the machine only ever makes a round slower."""
    return [*chain.from_iterable(sorted(result.seconds, key=sum)[: _quarter(result)])]


def _quarter(result: Measured) -> int:
    return max(1, len(result.seconds) // 4)


def written(page: str, text: str, begin: Callable[[str], bool]) -> str:
    """A page with the table whose first line `begin` recognises replaced by this one."""

    def replaced(match: re.Match[str]) -> str:
        return f"{text}\n" if begin(match[0].split("\n")[0]) else match[0]

    return re.sub(r"(?m)(^\|.*\n)+", replaced, page)


def main(*pages: str) -> None:
    """Measure and print; with pages, write the tables that they have anew."""
    with running() as meshes:
        measured = measure(meshes, ROUNDS, REQUESTS)
        # At the end, since it takes the captured pods apart.
        natures = {name: nature.nature_of(mesh) for name, mesh in meshes.items()}
    by_request = table(measured)
    by_kind = nature.table(natures, costs(measured))
    print(by_request, by_kind, sep="\n\n")
    for page in map(Path, pages):
        text = written(page.read_text(), by_request, lambda line: line.startswith("| a request on its own connection"))
        page.write_text(written(text, by_kind, lambda line: line.startswith(nature.HEAD)))


if __name__ == "__main__":
    main(*sys.argv[1:])
