"""Annotations that were meant to have an effect and have none are told; all others are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cli.app import main
from istio_init.options.annotation_warnings import misspelt
from istio_init.options.annotations import ANNOTATIONS, NAMES, TRAFFIC
from tests.kit.options import options

TRAFFIC_NAMES = sorted(name for name in NAMES if name.startswith(TRAFFIC))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (f"{TRAFFIC}includeInboundPort", f"{TRAFFIC}includeInboundPorts"),
        (f"{TRAFFIC}excludeOutboundPort", f"{TRAFFIC}excludeOutboundPorts"),
        (f"{TRAFFIC}excludeOutboundIpRanges", f"{TRAFFIC}excludeOutboundIPRanges"),
        (f"{TRAFFIC}includeOutboundIPRange", f"{TRAFFIC}includeOutboundIPRanges"),
        ("sidecar.istio.io/excludeInboundPorts", f"{TRAFFIC}excludeInboundPorts"),
        ("traffic.istio.io/excludeOutboundPorts", f"{TRAFFIC}excludeOutboundPorts"),
        ("sidecar.istio.io/interceptionmode", "sidecar.istio.io/interceptionMode"),
        ("Sidecar.istio.io/Inject", "sidecar.istio.io/inject"),
        ("proxy.istio.io/Config", "proxy.istio.io/config"),
    ],
)
def test_what_was_meant_is_named(name: str, meant: str) -> None:
    assert list(misspelt({name: "x"})) == [f"annotation {name!r}: no effect: did you mean {meant}?"]


def test_a_name_that_is_like_none_is_told_too() -> None:
    (line,) = misspelt({f"{TRAFFIC}frobnicate\n": "x"})
    assert line.endswith(f"no effect: no annotation under {TRAFFIC} has this name")
    assert line.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "istio.io/rev", "sidecar.istio.io/proxyCPU", "kubectl.kubernetes.io/restartedAt", "prometheus.io/port",
        "example.com/includeInboundPorts", "status", *sorted(NAMES),
    ],
)  # fmt: skip
def test_others_are_not(name: str) -> None:
    assert list(misspelt({name: "x"})) == []


@given(st.sampled_from(TRAFFIC_NAMES), st.data())
def test_one_letter_too_few_is_found(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(len(TRAFFIC), len(name) - 1))
    (line,) = misspelt({name[:at] + name[at + 1 :]: "x"})
    # Include and exclude differ in more than one letter, so that the one that was meant is the closest.
    assert f"did you mean {name}?" in line


def test_annotations_of_a_deployment_instead_of_its_template(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text(
        "kind: Deployment\nmetadata: {name: web, annotations: {sidecar.istio.io/interceptionMode: TPROXY}}\n"
        "spec: {template: {metadata: {annotations: {traffic.sidecar.istio.io/excludeInboundPort: '22'}},"
        " spec: {containers: [{name: web}]}}}\n"
    )
    assert main(["manifest", "--from-pod", str(path)], {}) == 0
    errors = capfd.readouterr().err
    assert "annotation sidecar.istio.io/interceptionMode: no effect: it is on the Deployment itself" in errors
    assert "move it to spec.template.metadata.annotations" in errors
    assert f"did you mean {TRAFFIC}excludeInboundPorts?" in errors


def test_every_annotation_is_known() -> None:
    assert {each.name for each in ANNOTATIONS} == NAMES
    assert options([], {}) is not None
