"""What asking the node agent costs an ADD of the CNI plugin, against reading annotations: scripts/agent-cost."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.namespace import Namespace
from integration.kit.node_agent import NodeAgent, node_agent
from integration.kit.program import ROOT
from tests.kit.lying_api import pod

AT_ONCE = (1, 10, 50)
# What an ADD by the agent may take, as a multiple of one by annotations.
MEDIAN, TAIL = 1.15, 2.0


class Contender:
    """The plugin of a bundle, with an agent or without."""

    def __init__(self, directory: Path, bundle: Path, **keys: str) -> None:
        directory.mkdir()
        self.plugin = Plugin(directory, **keys)
        self.plugin.command = [str(bundle / "istio-init-cni")]
        self.text = self.plugin.text(INJECTED, prevResult=PREVIOUS)

    def begin(self, namespace: Namespace, container: str) -> subprocess.Popen[str]:
        """An ADD that waits for its configuration."""
        return self.plugin.start("ADD", namespace.path, container)

    def together(self, count: int) -> tuple[list[float], float]:
        """The time of each of so many ADDs that begin at once, from the first process's start to its own end.

        And the processor time of all of them.
        """
        with ExitStack() as stack:
            namespaces = [stack.enter_context(Namespace()) for _ in range(count)]
            before, begin = children_time(), time.perf_counter()
            left = {str(n): self.begin(namespace, f"c{n}") for n, namespace in enumerate(namespaces)}
            for run in left.values():
                assert run.stdin is not None
                run.stdin.write(self.text)
                run.stdin.close()
            times = []
            while left:
                for name in [name for name, run in left.items() if run.poll() is not None]:
                    times.append(time.perf_counter() - begin)
                    _ended(left.pop(name))
                time.sleep(0.0005)
            return times, children_time() - before


def _ended(run: subprocess.Popen[str]) -> None:
    assert run.returncode == 0, run.stderr and run.stderr.read()
    for stream in (run.stdout, run.stderr):
        assert stream is not None
        stream.close()


def processor_time(agent: NodeAgent | None) -> float:
    """Seconds that the agent's event loop has run, as the scheduler counts (schedstat); 0 without an agent."""
    if agent is None:
        return 0.0
    return int(Path(f"/proc/{agent.process.pid}/schedstat").read_text().split()[0]) / 1e9


def children_time() -> float:
    """Seconds that the ADDs that have ended took of a processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Figures:
    """The times of one kind's ADDs, and the processor time of all of them."""

    def __init__(self, contender: Contender, agent: NodeAgent | None) -> None:
        self._contender, self._agent = contender, agent
        self._times: list[float] = []
        self._processor = 0.0

    def add(self, count: int) -> None:
        """Run so many ADDs at once."""
        before = processor_time(self._agent)
        times, processor = self._contender.together(count)
        self._times += times
        self._processor += processor + processor_time(self._agent) - before

    def summary(self) -> tuple[float, float, float]:
        """Median, 99th percentile, and processor time of an ADD with the agent's part, in milliseconds."""
        cuts = statistics.quantiles(self._times, n=100)
        return cuts[49] * 1000, cuts[98] * 1000, self._processor / len(self._times) * 1000


def measure(annotations: Contender, asking: Contender, agent: NodeAgent, adds: int) -> bool:
    """Print the figures, and return whether all are in bounds.

    The two take turns, so that what else the machine does hits both.
    """
    well = True
    for count in AT_ONCE:
        kinds = [Figures(annotations, None), Figures(asking, agent)]
        for number in range(max(adds // count, 2)):
            for kind in kinds if number % 2 else reversed(kinds):
                kind.add(count)
        figures = [kind.summary() for kind in kinds]
        for name, each in zip(("annotations", "agent"), figures, strict=True):
            print(
                f"{count:3} at once, {name:11}  median {{:8.1f}} ms  99th {{:8.1f}} ms  processor {{:6.2f}} ms".format(
                    *each
                )
            )
        ratios = [other / one for one, other in zip(*figures, strict=True)]
        print(
            f"{count:3} at once, ratio        median {{:8.2f}}     99th {{:8.2f}}     processor {{:6.2f}}".format(
                *ratios
            )
        )
        sys.stdout.flush()
        well &= ratios[0] <= MEDIAN and (ratios[1] <= TAIL or count < max(AT_ONCE))
    print(
        f"bounds: median {MEDIAN}, 99th percentile at {max(AT_ONCE)} at once {TAIL}: {'kept' if well else 'exceeded'}"
    )
    return well


def put_pods(agent: NodeAgent) -> None:
    """Create the pods that are started."""
    for number in range(max(AT_ONCE)):
        agent.api.put(pod(f"pod-c{number}", 1))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adds", type=int, default=200, help="of each kind: one after the other, 10 and 50 at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        bundle = directory / "bundle"
        subprocess.run([ROOT / "scripts/bundle-cni", bundle, bundle], check=True, capture_output=True)
        (directory / "node").mkdir()
        with node_agent(directory / "node") as agent:
            put_pods(agent)
            annotations = Contender(directory / "annotations", bundle)
            asking = Contender(directory / "agent", bundle, agent="required", agent_socket=str(agent.socket))
            if not measure(annotations, asking, agent, arguments.adds):
                sys.exit(1)


if __name__ == "__main__":
    main()
