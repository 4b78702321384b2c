"""What the plugin costs a sandbox: each plugin's ADD in the chain, and a whole sandbox with ours and without, in turns.

Run by scripts/sandbox-cost. Nothing here is a test's: a clock says other things on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from integration.containers.chain import FIRST, Attachment, ChainNode, make_first
from integration.containers.cri import Containerd
from integration.containers.engine import Engine
from integration.kit.cni import INJECTED
from integration.kit.namespace import Namespace
from istio_init.cni.node.conflist import PLUGIN

ROUNDS = 40
BARE = "an empty Python program"
WITHOUT, WITH = "RunPodSandbox without it", "RunPodSandbox with it"


def measure(rounds: int, plugin: Path | None = None) -> dict[str, list[float]]:
    """Seconds by what took them, in the order of the table."""
    result: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="istio-init-", dir="/var/tmp")))
        engine = stack.enter_context(Engine(directory / "docker"))
        make_first(engine, directory)
        node = stack.enter_context(ChainNode(directory / "node", plugin))
        runtimes = {}
        for title, name, ours in ((WITHOUT, "before", False), (WITH, "after", True)):
            runtimes[title] = stack.enter_context(Containerd(node, FIRST, node.chain(name, ours=ours)))
            runtimes[title].load(engine, FIRST)
        for number in range(rounds):
            # The first of each is for the caches.
            seconds = {BARE: _bare(), **_chain(node, number), **_sandboxes(runtimes, number)}
            for title, each in seconds.items():
                result.setdefault(title, []).extend([each] if number else [])
    return result


def _bare() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return time.perf_counter() - begin


def _chain(node: ChainNode, number: int) -> dict[str, float]:
    """The ADDs of two pods, one that is captured and one that is passed through."""
    seconds = {}
    for asked_for, how in (({}, "passed through"), (INJECTED, "captured")):
        with Namespace() as pod:
            attachment = Attachment(node, "after", pod, f"c{number}", asked_for)
            report = attachment.add()
            attachment.delete()
        for plugin, took in report.items():
            seconds[f"ADD of {plugin}, {how}" if plugin == PLUGIN else f"ADD of {plugin}"] = took
    return seconds


def _sandboxes(runtimes: dict[str, Containerd], number: int) -> dict[str, float]:
    seconds = {}
    # In turns, now the one first and now the other.
    for title in sorted(runtimes, reverse=bool(number % 2)):
        begin = time.perf_counter()
        pod = runtimes[title].sandbox(f"pod-{number}", annotations=INJECTED)
        seconds[title] = time.perf_counter() - begin
        pod.discard()
    return {title: seconds[title] for title in runtimes}


def table(result: dict[str, list[float]]) -> str:
    """The result in Markdown: medians, and how many times an empty Python program's."""
    bare, whole = statistics.median(result[BARE]), statistics.median(result[WITHOUT])
    lines = ["| what | ms | x bare Python | of a sandbox without it |", "| --- | ---: | ---: | ---: |"]
    for title, seconds in result.items():
        middle = statistics.median(seconds)
        lines.append(f"| {title} | {middle * 1000:.1f} | {middle / bare:.2f} | {middle / whole:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; with the name of a page that has a table of it, put it there."""
    parser = argparse.ArgumentParser(prog="sandbox-cost", description=__doc__.split("\n")[0])
    parser.add_argument("page", nargs="?", type=Path, help="a page whose table is written anew")
    parser.add_argument("--plugin", type=Path, help="the program, or the bundle, to install; unset: this one, by pip")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each is measured (%(default)s)")
    request = parser.parse_args()
    text = table(measure(request.rounds + 1, request.plugin))
    print(text)
    if request.page:
        page = request.page.read_text()
        request.page.write_text(re.sub(r"(?m)(?<=^<!-- cost -->\n)(^\|.*\n)+", lambda _: f"{text}\n", page))


if __name__ == "__main__":
    main()
