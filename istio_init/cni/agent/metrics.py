"""The agent's metrics for Prometheus. Every label has few values, whatever the plugin reports."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from istio_init import __version__
from istio_init.cni.agent.endpoint import Page
from istio_init.cni.plugin.protocol import (
    CONFIGURATION,
    DECODING,
    DRIFTED,
    ENVIRONMENT,
    FAILED,
    FAULT,
    INCOMPATIBLE_VERSION,
    NEEDED,
    TRY_AGAIN,
    UNAVAILABLE,
)
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from prometheus_client.registry import Collector

# Without _created series: they double the metrics, and process_start_time_seconds has the same information.
disable_created_metrics()  # type: ignore[no-untyped-call]
PREFIX = "istio_init_cni"
# The codes of the plugin's failures (docs/cni.md), as a metric names them.
REASONS = {
    INCOMPATIBLE_VERSION: "version",
    ENVIRONMENT: "environment",
    DECODING: "decoding",
    CONFIGURATION: "configuration",
    TRY_AGAIN: "try again",
    UNAVAILABLE: "unavailable",
    FAILED: "kernel",
    DRIFTED: "drifted",
    FAULT: "fault",
}
DECISIONS = {CAPTURED, PASSED}
OTHER = "other"
# Seconds. An ADD takes 20 ms on an idle node, and may wait 10 s for the agent.
BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The agent's counters and gauges."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        # Memory, processor time and descriptors, from /proc.
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info(f"{PREFIX}_build", "The release of istio-init.", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        self._adds = Counter(f"{PREFIX}_adds", "Pods that an ADD has decided about.", ["decision"], registry=registry)
        self._failures = Counter(
            f"{PREFIX}_failures", "Calls of the plugin that failed.", ["command", "reason"], registry=registry
        )
        self._seconds = Histogram(
            f"{PREFIX}_call_duration_seconds", "From a call's configuration to its result.", ["command"],
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self._api_failures = Counter(
            f"{PREFIX}_api_failures", "Lists and watches that failed, by the status of the answer.", ["status"],
            registry=registry,
        )  # fmt: skip
        self.lists = Counter(f"{PREFIX}_lists", "Lists of the node's pods.", registry=registry)
        self.direct = Counter(
            f"{PREFIX}_direct_requests", "Pods that were asked for because the watch did not know them.",
            registry=registry,
        )  # fmt: skip
        self._repairs = Counter(
            f"{PREFIX}_repairs", "What was done about pods that were missed.", ["state", "action", "result"],
            registry=registry,
        )  # fmt: skip
        self._pod_states = Gauge(
            f"{PREFIX}_pod_states", "Pods by the state of their rules, in the last inspection.", ["state"],
            registry=registry,
        )  # fmt: skip
        self.states: Callable[[], Mapping[str, int]] = dict
        self._gauges: dict[str, Gauge] = {}

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Have a value read whenever the metrics are."""
        self._gauges[name] = gauge = Gauge(f"{PREFIX}_{name}", what, registry=self._registry)
        gauge.set_function(value)

    def add(self, collector: Collector) -> None:
        """Have a collector's metrics on the page, too."""
        self._registry.register(collector)

    def count_report(self, outcome: Mapping[str, Any]) -> None:
        """Count what the plugin reports of a call."""
        code, seconds = outcome.get("code"), outcome.get("seconds")
        command = _label(outcome.get("command"), NEEDED)
        if isinstance(seconds, int | float) and 0 <= seconds < 1e6:
            self._seconds.labels(command).observe(seconds)
        if code != 0:
            self._failures.labels(command, REASONS.get(code, OTHER) if isinstance(code, int) else OTHER).inc()
        elif command == "ADD":
            self._adds.labels(_label(outcome.get("decision"), DECISIONS)).inc()

    def count_api_failure(self, status: int) -> None:
        """Count a list or watch that failed; 0 is a connection that did."""
        self._api_failures.labels(str(status) if 100 <= status < 600 else "none").inc()

    def count_repair(self, state: str, action: str, result: str) -> None:
        """Count what was done about a pod."""
        self._repairs.labels(state, action, result).inc()

    def page(self) -> Page:
        """/metrics, in Prometheus' text format."""
        self._pod_states.clear()
        for state, count in self.states().items():
            self._pod_states.labels(state).set(count)
        return Page(200, generate_latest(self._registry).decode(), CONTENT_TYPE_LATEST)


def _label(value: object, allowed: Container[str]) -> str:
    return value if isinstance(value, str) and value in allowed else OTHER
