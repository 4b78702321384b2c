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

AT_ONCE = (1, 10, 50)


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

    def together(self, count: int) -> list[float]:
        """The time of each of so many ADDs that begin at once, from the first process's start to its own end."""
        with ExitStack() as stack:
            namespaces = [stack.enter_context(Namespace()) for _ in range(count)]
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


def measure(annotations: Contender, asking: Contender, adds: int) -> None:
    """Print the figures; the two take turns, so that what else the machine does hits both."""
    for count in AT_ONCE:
        times: dict[str, list[float]] = {"annotations": [], "agent": []}
        for _ in range(max(adds // count, 1)):
            times["annotations"] += annotations.together(count)
            times["agent"] += asking.together(count)
        cuts = {name: statistics.quantiles(each, n=100) for name, each in times.items()}
        for name, each in cuts.items():
            print(f"{count:3} at once, {name:11}  median {each[49] * 1000:8.1f} ms  99th {each[98] * 1000:8.1f} ms")
        median, tail = (cuts["agent"][index] / cuts["annotations"][index] for index in (49, 98))
        print(f"{count:3} at once, ratio        median {median:8.2f}     99th {tail:8.2f}", flush=True)


def put_pods(agent: NodeAgent) -> None:
    """Create the pods that are started."""
    for number in range(max(AT_ONCE)):
        agent.api.put(pod(f"pod-c{number}", 1))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adds", type=int, default=100, help="of each kind: one after the other, 10 and 50 at once")
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
            measure(annotations, asking, arguments.adds)


if __name__ == "__main__":
    main()
