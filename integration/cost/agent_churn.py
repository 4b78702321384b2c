"""Whether the node agent's memory and descriptors stay flat while pods come and go: scripts/agent-cost --churn."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from integration.kit.node_agent import NodeAgent, node_agent, until
from tests.kit.lying_api import pod

# Pods of the node at one time; a pod's manifest has some 10 KB.
PODS, SIZE = 110, 9000
# After so many changes: a question and a report, as of an ADD; watches that end; a server that is gone for a moment.
ADD, BREAK, OUTAGE = 5, 2000, 5000
TICKS = os.sysconf("SC_CLK_TCK")
# KB that the memory may grow by after the first tenth.
GROWTH = 4096


class Usage(NamedTuple):
    """What the agent has taken: KB of resident memory, descriptors, threads, seconds of processor time."""

    memory: int
    descriptors: int
    threads: int
    seconds: float


def usage(pid: int) -> Usage:
    """What a process takes now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines)
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(int(fields["VmRSS"].split()[0]), descriptors, int(fields["Threads"]), sum(map(int, ticks)) / TICKS)


def change(agent: NodeAgent, number: int) -> None:
    """One change of the node's pods: one comes, changes, or goes."""
    name = f"pod-{number % PODS}"
    if number // PODS % 4 == 3:
        agent.api.delete(name)
    else:
        agent.api.put(pod(name, 1, uid=f"uid-{number // PODS // 4}", env="x" * SIZE))


def add(agent: NodeAgent, number: int) -> None:
    """What an ADD exchanges with the agent: the pod, and a report with the log."""
    name = f"pod-{number % PODS}"
    ask(agent, {"version": 1, "ask": "pod", "namespace": "default", "name": name, "uid": ""})
    outcome = {"command": "ADD", "code": 0, "seconds": 0.02, "decision": "captured"}
    line = json.dumps({"level": "info", "msg": "applied", "command": "ADD", "pod": name, "namespace": "default"})
    ask(agent, {"version": 1, "ask": "report", "outcome": outcome, "lines": [line]})


def ask(agent: NodeAgent, message: dict[str, object]) -> None:
    """Send a message, and read the answer, if there is one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket))
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def churn(agent: NodeAgent, changes: int, rate: float) -> bool:
    """Make changes, `rate` a second at most, with a line of figures after each tenth; whether the figures are flat."""
    early = usage(agent.process.pid)
    flat = True
    begin = time.monotonic()
    for number in range(1, changes + 1):
        change(agent, number)
        if number % ADD == 0:
            add(agent, number)
        if number % BREAK == 0:
            agent.api.break_watches()
        if number % OUTAGE == 0:
            agent.api.down = True
            agent.api.break_watches()
            time.sleep(1)
            agent.api.down = False
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        if number % (changes // 10) == 0:
            awaited(agent)
            current = usage(agent.process.pid)
            print(
                f"{number:8} changes   {current.memory / 1024:6.1f} MB   {current.descriptors:3} descriptors   "
                f"{current.threads} threads   {current.seconds:7.2f} s of processor time",
                flush=True,
            )
            if number == changes // 10:
                early = current
            flat = current.memory < early.memory + GROWTH and current.descriptors <= early.descriptors
    return flat


def awaited(agent: NodeAgent) -> None:
    """Wait until the agent knows the pods that there are, and has no connection open but its watch."""
    text = f"istio_init_cni_pods {len(agent.api.pods)}.0"
    until(lambda: text in agent.get("/metrics")[1], text)


def main() -> None:
    """Make changes, print, and exit with 1 where memory or descriptors grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=18000, help="as of an hour with five a second")
    parser.add_argument("--rate", type=float, default=1000.0, help="changes a second at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, node_agent(Path(scratch)) as agent:
        begin = time.monotonic()
        flat = churn(agent, options.changes, options.rate)
        print(f"{options.changes} changes in {time.monotonic() - begin:.0f} s: {'flat' if flat else 'NOT FLAT'}")
    sys.exit(not flat)


if __name__ == "__main__":
    main()
