"""The agent's metrics: what is counted, and labels that cannot grow."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from istio_init import __version__
from istio_init.cni.agent.metrics import PREFIX, REASONS, Metrics
from istio_init.cni.plugin import protocol

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/agent.md").read_text()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """All values by name and labels, as Prometheus' own parser reads them."""
    page = metrics.page()
    assert page.status == 200
    return {
        (sample.name.removeprefix(f"{PREFIX}_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def outcome(**changes: object) -> dict[str, Any]:
    return {"command": "ADD", "code": 0, "seconds": 0.012, "decision": "captured", **changes}


def test_what_a_report_counts() -> None:
    metrics = Metrics()
    for each in (
        outcome(), outcome(), outcome(decision="passed through"), outcome(code=11), outcome(code=7),
        outcome(command="DEL"), outcome(command="CHECK", code=101),
    ):  # fmt: skip
        metrics.count_report(each)
    actual = samples(metrics)
    assert actual["adds_total", "captured"] == 2
    assert actual["adds_total", "passed through"] == 1
    assert actual["failures_total", "ADD", "try again"] == 1
    assert actual["failures_total", "ADD", "configuration"] == 1
    assert actual["failures_total", "CHECK", "drifted"] == 1
    assert actual["call_duration_seconds_count", "ADD"] == 5
    assert actual["call_duration_seconds_bucket", "ADD", "0.01"] == 0
    assert actual["call_duration_seconds_bucket", "ADD", "0.02"] == 5
    assert actual["call_duration_seconds_count", "DEL"] == 1


@pytest.mark.parametrize("code", [99, "x", None, [], True, 1e300])
@pytest.mark.parametrize("command", ["EVIL", None, 7, [], {}])
def test_labels_cannot_grow(command: object, code: object) -> None:
    metrics = Metrics()
    strange: tuple[object, ...] = (-1, "x", None, float("inf"), float("nan"), [])
    for seconds in strange:
        metrics.count_report(outcome(command=command, code=code, decision=["x"], seconds=seconds))
    labels = {each[1:] for each in samples(metrics) if each[0] in {"failures_total", "adds_total"}}
    assert labels <= {("other", "other"), ("other", "version"), ("other",)}


def test_every_code_of_the_plugin_has_a_name() -> None:
    codes = {value for name, value in vars(protocol).items() if name.isupper() and type(value) is int}
    assert codes - {protocol.LONGEST_INPUT, protocol.LONGEST_ARGS, protocol.LONGEST_INTERFACE} == set(REASONS)


def test_the_api_servers_failures() -> None:
    metrics = Metrics()
    for status in (0, 410, 500, 123456, -1):
        metrics.count_api_failure(status)
    actual = {key[1:]: value for key, value in samples(metrics).items() if key[0] == "api_failures_total"}
    assert actual == {("none",): 3, ("410",): 1, ("500",): 1}


def test_the_build() -> None:
    assert any(key[0] == "build_info" and __version__ in key for key in samples(Metrics()))


def test_the_page_lists_all_metrics_and_no_other(tmp_path: Path) -> None:
    from istio_init.cni.agent.agent import Agent, AgentSettings
    from istio_init.cni.agent.credentials import ApiCredentials
    from istio_init.cni.agent.repair import RepairSettings
    from istio_init.cni.node.directories import Directories
    from istio_init.log import Log

    async def agent_metrics() -> Metrics:
        places = Directories(str(tmp_path), str(tmp_path))
        credentials = ApiCredentials("http://127.0.0.1:1", {}, {})
        settings = AgentSettings(
            "n", credentials, places, "", "", dict, 10.0, "keep", "", str(tmp_path / "s"), RepairSettings()
        )
        return Agent(settings, Log("none")).metrics

    text = asyncio.run(agent_metrics()).page().text
    names = set(re.findall(rf"^# TYPE ({PREFIX}_\w+) ", text, re.MULTILINE))
    assert names == set(re.findall(rf"`({PREFIX}_\w+)`", DOCS))
