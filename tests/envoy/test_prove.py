"""`istio-init prove --envoy` as a user calls it."""

from __future__ import annotations

import json

import pytest

from istio_init.cli.app import main
from tests.envoy import sidecar

DUMP = str(sidecar.DUMPS / "redirect.json")
ASK = ["prove", "-i", "*", "-b", "*", "-u", "1337", "--pod-address", "10.44.0.2", "--envoy", DUMP]
QUIET = {"ENVOY_USER": "0"}


def test_rules_and_proxy_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ASK, QUIET) == 0
    out = capsys.readouterr().out
    assert "holds  P12 the rules capture" in out
    assert out.splitlines()[-1].startswith("Rules and proxy fit: 12 claims")


def test_rules_and_proxy_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, "-m", "TPROXY"], QUIET) == 1
    out = capsys.readouterr().out
    assert "BROKEN P4" in out
    assert "TPROXY finds no transparent socket at port 15006" in out
    assert main([*ASK, "-m", "TPROXY", "--output", "json"], QUIET) == 1
    envoy = json.loads(capsys.readouterr().out)["envoy"]
    assert envoy["fits"] is False
    assert [(each["claim"], each["explain"]["end"]) for each in envoy["misfits"]] == [("P4", "hangs")]


def test_a_proxy_that_runs_as_somebody_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, "--proxy-runs-as", "1000"], QUIET) == 1
    assert "BROKEN P10" in capsys.readouterr().out
