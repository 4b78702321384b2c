"""What asking the node agent costs an ADD of the CNI plugin, against reading annotations: scripts/agent-cost."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.namespace import Namespace
from integration.kit.node_agent import NodeAgent, node_agent
from integration.kit.program import ROOT
from tests.kit.lying_api import pod

AT_ONCE = 50


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

    def seconds(self, container: str) -> float:
        """The time of one ADD in a fresh namespace, from the process's start to its end."""
        with Namespace() as namespace:
            begin = time.perf_counter()
            self.finish(self.begin(namespace, container))
            return time.perf_counter() - begin

    def finish(self, run: subprocess.Popen[str]) -> None:
        """Give an ADD its configuration, and wait for its end."""
        result, log = run.communicate(self.text)
        assert run.returncode == 0, result + log

    def together(self) -> list[float]:
        """The time of each of many ADDs that begin at once."""
        with ExitStack() as stack:
            namespaces = [stack.enter_context(Namespace()) for _ in range(AT_ONCE)]
            begin = time.perf_counter()
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
            return times


def _ended(run: subprocess.Popen[str]) -> None:
    assert run.returncode == 0, run.stderr and run.stderr.read()
    for stream in (run.stdout, run.stderr):
        assert stream is not None
        stream.close()


def measure(annotations: Contender, asking: Contender, pairs: int, rounds: int) -> None:
    """Print the figures; the two take turns, so that what else the machine does hits both."""
    alone: dict[str, list[float]] = {"annotations": [], "agent": []}
    many: dict[str, list[float]] = {"annotations": [], "agent": []}
    for _ in range(pairs):
        alone["annotations"].append(annotations.seconds("a1"))
        alone["agent"].append(asking.seconds("a1"))
    for _ in range(rounds):
        many["annotations"] += annotations.together()
        many["agent"] += asking.together()
    median = {name: statistics.median(times) * 1000 for name, times in alone.items()}
    tail = {name: statistics.quantiles(times, n=100)[98] * 1000 for name, times in many.items()}
    for name in alone:
        print(f"{name:12} median {median[name]:7.1f} ms   99th percentile of {AT_ONCE} at once {tail[name]:8.1f} ms")
    print(
        f"{'ratio':12} median {median['agent'] / median['annotations']:7.2f}      99th percentile of {AT_ONCE} at once "
        f"{tail['agent'] / tail['annotations']:8.2f}"
    )


def put_pods(agent: NodeAgent) -> None:
    """Create the pods that are started."""
    for name in ("pod-a1", *(f"pod-c{number}" for number in range(AT_ONCE))):
        agent.api.put(pod(name, 1))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="ADDs one after the other, of each")
    parser.add_argument("--rounds", type=int, default=2, help=f"rounds of {AT_ONCE} at once, of each")
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
            measure(annotations, asking, arguments.pairs, arguments.rounds)


if __name__ == "__main__":
    main()
