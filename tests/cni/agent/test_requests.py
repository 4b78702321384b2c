"""Requests to the agent that are anything at all: each has an answer, and none is an internal error."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st

from istio_init.cni.agent.answers import Answers
from istio_init.cni.agent.credentials import ApiCredentials
from istio_init.cni.agent.health import Health
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.cni.agent.metrics import Metrics
from istio_init.cni.agent.pods import PodStore, from_object
from istio_init.cni.agent.reports import Reports
from istio_init.cni.agent.server import PluginServer
from istio_init.log import Log
from tests.cni.agent.test_objects import JSON
from tests.kit.lying_api import pod

NAMES = st.text(max_size=8) | st.sampled_from(["web", "default", "uid-web", "\ud800", "../web"])
OUTCOMES = st.dictionaries(
    st.sampled_from(["command", "code", "seconds", "decision"]),
    JSON | st.sampled_from(["ADD", "captured", 0, 7, 1e308, float("nan"), -1, 10**400]),
)
REQUESTS = st.fixed_dictionaries(
    {"version": st.just(1) | JSON, "ask": st.sampled_from(["pod", "health", "report"]) | JSON},
    optional={
        "namespace": NAMES | JSON,
        "name": NAMES | JSON,
        "uid": NAMES | JSON,
        "outcome": OUTCOMES | JSON,
        "lines": st.lists(st.text(max_size=20) | JSON, max_size=3) | JSON,
    },
)


@given(request=REQUESTS | JSON)
def test_any_request_is_answered(request: object) -> None:
    store, metrics, reports = PodStore(), Metrics(), Reports(Log("none"))
    store.replace([from_object(pod("web", 1))], "10")
    reports.counted = metrics.count_report
    # No server listens there: a pod that is not known is one of which the API server does not answer.
    answers = Answers(KubernetesApi(ApiCredentials("http://127.0.0.1:1", {}, {})), store, Health())
    handlers = {"pod": answers.pod, "health": answers.health, "report": reports.take}
    server = PluginServer(handlers, Log("none"))
    answer = asyncio.run(server.answer(json.dumps(request).encode()))
    assert "internal error" not in json.dumps(answer)
    assert metrics.page().status == 200
