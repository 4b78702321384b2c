"""What the plugin and its agent cost a node of Kubernetes: scripts/node-cost.

Pods that start at once, in rounds with the plugin and without it in turns; and what the agent takes, idle and while
pods come and go.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from typing import NamedTuple

import yaml

from integration.cluster.images import make
from integration.cluster.node import PAUSE, KubernetesNode
from integration.cluster.plugin import INJECTED, PLAIN, leaves_nothing, rolled_out
from integration.cluster.test_agent import metrics

NAMESPACE = "scale"


class Usage(NamedTuple):
    """The agent's resident memory in MB, and its processor time so far in seconds."""

    memory: float
    seconds: float


def usage(node: KubernetesNode) -> Usage:
    """What the agent says of itself."""
    text = metrics(node)
    memory, seconds = (
        float(re.findall(rf"^{name} (\S+)", text, re.MULTILINE)[0])
        for name in ("process_resident_memory_bytes", "process_cpu_seconds_total")
    )
    return Usage(memory / 2**20, seconds)


def pods(count: int) -> str:
    """Injected pods of two containers that do nothing."""
    containers = [{"name": name, "image": PAUSE} for name in ("app", "istio-proxy")]
    spec = {"terminationGracePeriodSeconds": 0, "containers": containers}
    return "---\n".join(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pod-{number}", "annotations": INJECTED},
                "spec": spec,
            }
        )
        for number in range(count)
    )


def started(node: KubernetesNode, count: int) -> float:
    """How many pods a second start, of so many that are created at once; they are deleted then."""
    begin = time.monotonic()
    node.apply(pods(count), NAMESPACE)
    query = ("-n", NAMESPACE, "get", "pods", "--output=jsonpath={.items[*].status.phase}")
    node.until(lambda: node.kubectl(*query).split().count("Running") == count, "the pods to run")
    seconds = time.monotonic() - begin
    node.kubectl("-n", NAMESPACE, "delete", "pods", "--all", "--wait=true", "--timeout=180s")
    return count / seconds


def measure(node: KubernetesNode, rounds: int, count: int, idle: float) -> None:
    """Print pods a second of each round, their ratio, and what the agent took."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with node.namespace(NAMESPACE):
        started(node, count)  # for the caches
        for _ in range(rounds):
            rates[False].append(started(node, count))
            node.kubectl("apply", "--filename=-", text=PLAIN)
            rolled_out(node)
            try:
                before = usage(node)
                time.sleep(idle)
                rest = usage(node)
                rates[True].append(started(node, count))
                after = usage(node)
            finally:
                node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
                node.until(lambda: leaves_nothing(node), "the plugin to go")
            print(
                f"pods a second: {rates[False][-1]:.2f} without the plugin, {rates[True][-1]:.2f} with it; the agent: "
                f"idle {rest.memory:.1f} MB, {(rest.seconds - before.seconds) / idle * 1000:.1f} ms a second; "
                f"{count} pods started and deleted: {after.memory:.1f} MB, "
                f"{(after.seconds - rest.seconds) / count * 1000:.1f} ms a pod",
                flush=True,
            )
    ratio = statistics.median(rates[True]) / statistics.median(rates[False])
    print(f"ratio of the medians: {ratio:.2f}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pods", type=int, default=40, help="created at once")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds in which nothing happens")
    options = parser.parse_args()
    images = make()
    with KubernetesNode() as node:
        node.load(images)
        measure(node, options.rounds, options.pods, options.idle)


if __name__ == "__main__":
    main()
