"""What a long list of excluded networks costs a connection's first packet, through each backend, in turns.

Run by scripts/packet-cost. All namespaces exist at once and send in turns, so that whatever else the machine does falls
on all of them alike; the result is ratios to a packet that no rule looks at, not microseconds.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.program import succeed
from scripts.benchmark import growth

# None: what Istio's rules cost by themselves.
COUNTS = (0, 10, 1_000, 10_000)
ROUNDS, PACKETS = 50, 100
# TEST-NET-2 of RFC 5737: in no list, so that a packet to there meets all of it.
DESTINATION = ("198.51.100.1", 9)


class Scenario(NamedTuple):
    """Which backend has the rules, "" for none, and how many networks they exclude."""

    backend: str
    networks: int


NO_RULES = Scenario("", 0)


class Measured(NamedTuple):
    """What came of one way: seconds for each packet, and the conntrack entries that all of them left."""

    seconds: list[float]
    entries: int


def measure(counts: tuple[int, ...], rounds: int, packets: int) -> dict[Scenario, Measured]:
    """Send so many packets each way in each of the rounds, every one the first of a connection of its own."""
    with _namespaces(counts) as namespaces:
        seconds: dict[Scenario, list[float]] = {direction: [] for direction in namespaces}
        order = random.Random(0)
        for _ in range(rounds):
            # In another order each time: who comes first pays for who came before.
            for direction in order.sample([*namespaces], len(namespaces)):
                seconds[direction] += namespaces[direction].inside(lambda: _sent(packets))
        entries = {direction: int(namespace.run("conntrack", "--count")) for direction, namespace in namespaces.items()}
    return {direction: Measured(seconds[direction], entries[direction]) for direction in seconds}


@contextlib.contextmanager
def _namespaces(counts: tuple[int, ...]) -> Iterator[dict[Scenario, Namespace]]:
    """All namespaces, with their rules and a way out."""
    ways = [NO_RULES, *(Scenario(backend, count) for backend in BACKENDS for count in counts)]
    with contextlib.ExitStack() as stack:
        namespaces = {direction: stack.enter_context(Namespace()) for direction in ways}
        for direction, namespace in namespaces.items():
            # A wire whose other end is down: packets leave, and go no further.
            namespace.run("ip", "link", "add", "out", "type", "veth", "peer", "name", "nowhere")
            namespace.run("ip", "link", "set", "out", "arp", "off", "up")
            namespace.run("ip", "route", "add", "default", "dev", "out")
            if direction.backend:
                excluded = ["-x", growth.apart(direction.networks)]
                succeed(namespace, *growth.BASE, "--no-enable-ipv6", *BACKENDS[direction.backend], *excluded)
        yield namespaces


def _sent(packets: int) -> list[float]:
    """How long the kernel took for each packet, in seconds."""
    with contextlib.ExitStack() as stack:
        # UDP, which Istio's rules look at as they do at TCP, and at the end let go: nobody answers in between.
        senders = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(packets)]
        taken = []
        for sender in senders:
            sender.bind(("", 0))
            begin = time.perf_counter()
            sender.sendto(b"", DESTINATION)
            taken.append(time.perf_counter() - begin)
    return taken


def table(measured: dict[Scenario, Measured]) -> str:
    """The result in Markdown."""
    base = statistics.median(measured[NO_RULES].seconds)
    lines = [f"| excluded networks | {' | '.join(BACKENDS)} |", f"| --- |{' --- |' * len(BACKENDS)}"]
    for count in dict.fromkeys(direction.networks for direction in measured if direction != NO_RULES):
        medians = [statistics.median(measured[Scenario(backend, count)].seconds) for backend in BACKENDS]
        lines.append(f"| {count:,} | {' | '.join(f'{each / base:.1f}' for each in medians)} |")
    return "\n".join(lines)


def main(page: str = "") -> None:
    """Measure and print; with the name of a page that has such a table, put it there."""
    text = table(measure(COUNTS, ROUNDS, PACKETS))
    print(text)
    if page:
        path = Path(page)
        old = re.compile(r"^\| excluded networks .*\n(?:\|.*\n)+", re.MULTILINE)
        path.write_text(old.sub(lambda _: f"{text}\n", path.read_text(), count=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
