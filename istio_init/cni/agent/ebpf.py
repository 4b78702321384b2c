"""Keeps capture by eBPF in place: restores missing pins, and exports the programs' counters.

No ADD waits for this: the plugin installs and attaches by itself, and all stays attached without the agent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Never

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from istio_init.cni.agent.metrics import PREFIX
from istio_init.errors import InitError
from istio_init.kernel.ebpf import pods
from istio_init.kernel.ebpf.holder import Holder
from istio_init.kernel.ebpf.installation import Installation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import Metric

    from istio_init.kernel.ebpf.holder import Look
    from istio_init.log import Log

# Seconds between two checks, each of which takes about a millisecond.
INTERVAL = 2.0
NAME = "capture by eBPF"


class EbpfKeeper:
    """Checks the pins periodically, restores missing ones, and logs it."""

    def __init__(self, log: Log) -> None:
        self._log, self._holder = log, Holder()
        self._problem = ""
        self.restored = 0
        self.missing = 0

    async def run(self) -> Never:
        """Check every INTERVAL; log an error when it first occurs."""
        while True:
            try:
                # In a thread: it waits for the lock that an ADD holds.
                self._report(await asyncio.to_thread(self._holder.look))
            except InitError as error:
                self._say(str(error))
            except (OSError, ValueError) as error:  # ValueError: a name that no pin has
                self._say(f"the pins cannot be read: {getattr(error, 'strerror', None) or error}")
            await asyncio.sleep(INTERVAL)

    def _report(self, look: Look) -> None:
        self.restored += len(look.restored) + len(look.attached)
        self.missing = len(look.missing)
        if look.restored:
            self._log.warn(f"{NAME}: removed pins have been restored: {_list(look.restored)}; what removes them?")
        if look.attached:
            self._log.warn(f"{NAME}: programs that were not attached are attached again: {_list(look.attached)}")
        if look.collected:
            self._log.info(f"{NAME}: {len(look.collected)} pods that have ended are forgotten")
        self._say(
            f"programs are not attached, and pods' connections are not captured: {_list(look.missing)}: {look.why}"
            if look.missing
            else ""
        )

    def _say(self, problem: str) -> None:
        """Log a problem unless it is the same as before."""
        if problem and problem != self._problem:
            self._log.error(f"{NAME}: {problem}")
        self._problem = problem


class EbpfMetrics(Collector):
    """The programs' counters, read whenever the metrics are; without an installation there are none."""

    def __init__(self, keeper: EbpfKeeper | None) -> None:
        self._keeper = keeper

    def collect(self) -> Iterable[Metric]:
        """The metrics of this mode."""
        events = CounterMetricFamily(
            f"{PREFIX}_ebpf_events", "What the eBPF programs counted since they were installed.", labels=["event"]
        )
        captured = GaugeMetricFamily(f"{PREFIX}_ebpf_pods", "Pods captured by eBPF.")
        missing = GaugeMetricFamily(f"{PREFIX}_ebpf_missing_programs", "Programs that should be attached and are not.")
        restored = CounterMetricFamily(f"{PREFIX}_ebpf_restored", "Removed pins and programs that were restored.")
        if self._keeper is not None:
            missing.add_metric([], self._keeper.missing)
            restored.add_metric([], self._keeper.restored)
            counts, number = _figures()
            for name, count in counts.items():
                events.add_metric([name], count)
            captured.add_metric([], number)
        return events, captured, missing, restored


def _figures() -> tuple[dict[str, int], int]:
    """The programs' counters by name, and how many pods there are."""
    installation = Installation("")
    try:
        if installation.installed:
            return pods.counts(installation), len(pods.cookies(installation))
    except (InitError, OSError, ValueError):
        pass  # the keeper's log has it
    finally:
        installation.close()
    return {}, 0


def _list(names: Sequence[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(names[:3]) + more
