"""A large mesh's dump: what an answer costs does not grow faster than the dump."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from istio_init.envoy.dump import read
from tests.envoy import sidecar
from tests.envoy.large import large


def calls(function: Callable[[], object]) -> int:
    """How many functions are called: what an answer costs, on any machine."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counted


def explained(dump: Any) -> None:  # noqa: ANN401 (JSON)
    pod = sidecar.pod(read(dump))
    path = sidecar.only(pod, sidecar.outbound(pod, "10.97.0.9", 9080), host="s8")
    assert path.passages[0].cluster == "outbound|9080||s8.default.svc.cluster.local"


def test_the_cost_grows_with_the_dump_and_no_faster() -> None:
    none, small, twice = large(20, 10), large(250, 100), large(500, 200)
    base = calls(lambda: explained(none))
    one, two = calls(lambda: explained(small)), calls(lambda: explained(twice))
    assert two - base < 2.5 * (one - base)
    assert (two - one) / (250 + 100) < 60, "calls for each cluster and listener more"
