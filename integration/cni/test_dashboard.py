"""The chart's dashboard with data: each of its queries, by a real Prometheus that scrapes a running agent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from integration.cni.test_agent_repair import Repairing, repairing
from integration.kit.cni import INJECTED, PREVIOUS
from integration.kit.namespace import Namespace
from integration.kit.node_agent import until
from integration.kit.program import ROOT
from integration.kit.prometheus import Prometheus, prometheus
from tests.kit.lying_api import pod

DASHBOARD = json.loads((ROOT / "deploy/helm/istio-init-cni/dashboards/istio-init-cni.json").read_text())
# Grafana's variables, as it fills them in; the interval covers all of the test, however busy the machine is.
VARIABLES = {"$node": ".*", "$__rate_interval": "1h"}
# 0 where all is well.
TROUBLES = [
    "Nodes that are not ready",
    "Nodes without the entry",
    "Nodes without a watch",
    "Uncaptured and drifted pods",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen an agent at work: of everything that it counts, twice."""
    directory = tmp_path_factory.mktemp("node")
    shared = tmp_path_factory.getbasetemp()
    with repairing(directory, "mend") as repair, Namespace() as namespace:
        target = f"127.0.0.1:{repair.agent.port}"
        labels = {"job": "istio-init-cni", "node": "node-1"}
        with prometheus(shared, directory, target, labels) as running:
            until(lambda: answers(running), "Prometheus")
            for number in range(2):
                work(repair, namespace, number)
                observed = f"min_over_time(istio_init_cni_lists_total[3s]) == {number + 2}"
                until(lambda: bool(running.query(observed)), "some scrapes")  # noqa: B023 (called at once)
            yield running


def answers(running: Prometheus) -> bool:
    try:
        return bool(running.query("istio_init_cni_ready"))
    except OSError:
        return False


def work(result: Repairing, namespace: Namespace, number: int) -> None:
    """Pods that start, one that may not, one that was missed; a watch that breaks."""
    api = result.agent.api
    for name in (f"a{number}", f"hidden{number}"):
        if name.startswith("hidden"):
            api.hidden.add(f"pod-{name}")
        api.put(pod(f"pod-{name}", 1))
        assert result.plugin.call("ADD", namespace.path, INJECTED, name, prevResult=PREVIOUS).code == 0
    api.put(pod(f"pod-w{number}", 1, annotations={"traffic.sidecar.istio.io/includeInboundPorts": "http"}))
    assert result.plugin.call("ADD", namespace.path, {}, f"w{number}", prevResult=PREVIOUS).code == 1
    with Namespace() as missed:
        result.run(missed, f"web-{number}")
        result.wait_for_line(f"pod default/web-{number}: uncaptured")
    api.break_watches()


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_panel_has_data(server: Prometheus, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        series = server.query(expression)
        assert series, expression
        assert "NaN" not in {each["value"][1] for each in series}
        if panel["title"] in TROUBLES:
            assert [each["value"][1] for each in series] == ["0"]
        # What the legend names is in the series.
        named = re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
        assert all(each["metric"].keys() >= set(named) for each in series)


def test_the_nodes_to_choose_from(server: Prometheus) -> None:
    [variable] = [each for each in DASHBOARD["templating"]["list"] if each["name"] == "node"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
    assert server.values(label, metric) == ["node-1"]
