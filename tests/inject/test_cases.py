"""Workloads beside what Istio's own program (istioctl kube-inject) made of them: who, where, and with which arguments.

Each case has an input and the expected init container under several settings of the mesh. What differs on purpose: the
proxy is not injected, the root file system is read-only, the resources are this program's, and an image that was asked
for comes before the annotation `sidecar.istio.io/proxyImage`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from istio_init.inject.containers import InitSpec
from istio_init.inject.injector import inject, remove
from istio_init.options.manifest import IMAGE, RESOURCES
from istio_init.options.workload import Workload, workloads

CASES = Path(__file__).parent / "cases"
OWN_IMAGE = "registry.example/istio-init:0.1.0"
# What each setting of the mesh is in the words of `istio-init inject`.
SETTINGS = {
    "as it is": InitSpec({}),
    "cni": InitSpec({}, validation=True),
    "our-image": InitSpec({}, OWN_IMAGE),
    "nftables": InitSpec({"native_nftables": "true"}),
    "json-log-force": InitSpec({"log_as_json": "true", "force_apply": "true"}),
}
EXPECTED = [
    (case.name, setting, expected)
    for case in sorted(CASES.iterdir())
    for setting, expected in json.loads((case / "expected.json").read_text()).items()
    if setting in SETTINGS
]


def result(text: str) -> list[Workload]:
    return [workload for document in yaml.safe_load_all(text) for workload in workloads(document)]


@pytest.mark.parametrize(
    ("name", "setting", "expected"), EXPECTED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_container_is_the_one_that_istio_makes(name: str, setting: str, expected: dict[str, Any]) -> None:
    text, request = (CASES / name / "input.yaml").read_text(), SETTINGS[setting]
    if parts := expected.get("refused, naming"):
        with pytest.raises(Exception, match="annotation") as caught:
            inject(text, request)
        assert all(part in str(caught.value) for part in parts)
        return
    done = inject(text, request)
    assert (done.text == text) == all("container" not in each for each in pods(expected))
    assert bool(done.notes) == (done.text == text)
    for workload, desired in zip(result(done.text), pods(expected), strict=True):
        order = [each for each in desired["initContainers"] if each != "istio-proxy"]
        assert [each.name for each in workload.containers() if each.init] == order
        if "container" in desired:
            compare(workload, desired["container"])
    assert remove(done.text).text == text
    assert inject(done.text, request).text == done.text


def pods(expected: dict[str, Any]) -> list[dict[str, Any]]:
    """The expected pods; one case has its only pod at the top, and of its container the arguments."""
    actual: list[dict[str, Any]] = expected.get("pods") or [{**expected, "container": {"args": expected["args"]}}]
    return actual


def compare(workload: Workload, desired: dict[str, Any]) -> None:
    created = workload.init_container(desired.get("name", "istio-init"))
    assert created is not None
    assert created.body["args"] == desired["args"]
    assert created.body["resources"] == RESOURCES
    assert {each["name"]: each["value"] for each in created.body.get("env", [])} == desired.get("env", {})
    if desired.get("image") == OWN_IMAGE:
        assert created.body["image"] == OWN_IMAGE
    rights = created.body["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    if "user" in desired:
        assert [rights["runAsUser"], rights["runAsGroup"]] == desired["user"]
        assert [rights["capabilities"].get("add", []), rights["capabilities"]["drop"]] == desired["capabilities"]


def test_every_setting_of_the_cases_is_known() -> None:
    settings = {key for case in CASES.iterdir() for key in json.loads((case / "expected.json").read_text())}
    assert settings - {"input"} == set(SETTINGS)
    assert len(EXPECTED) == 19


def test_an_image_that_was_asked_for_comes_before_the_proxys() -> None:
    text = (CASES / "proxy-image" / "input.yaml").read_text()
    assert "image: registry.example/proxyv2:special\n" in inject(text, InitSpec({})).text
    assert f"image: {OWN_IMAGE}\n" in inject(text, InitSpec({}, OWN_IMAGE)).text
    without_registry = text.replace("registry.example/proxyv2:special", "proxyv2-special")
    assert f"image: {IMAGE}\n" in inject(without_registry, InitSpec({})).text


def test_the_image_of_a_pods_own_stays() -> None:
    text = (CASES / "own-init-image" / "input.yaml").read_text()
    assert "image: other" not in inject(text, InitSpec({}, "other")).text
