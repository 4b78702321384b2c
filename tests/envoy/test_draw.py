"""`istio-init draw --envoy`: the page shows the proxy's part of a packet's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from istio_init.cli.app import main
from tests.envoy import sidecar

ASK = ["draw", "-i", "*", "-b", "*", "-u", "1337", "--pod-address", "10.44.0.2", "--inbound", "--to", ":9080"]
QUIET = {"ENVOY_USER": "0"}


def test_a_page_shows_the_proxys_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = sidecar.value()
    chain = sidecar.listener(dump, "virtualInbound")["filter_chains"][-1]
    chain["name"] = "</p><script>alert(1)</script>"
    file = tmp_path / "dump.json"
    file.write_text(json.dumps(dump))
    assert main([*ASK, "--format", "html", "--envoy", str(file), "--speaks", "http"], QUIET) == 0
    page = capsys.readouterr().out
    assert page.count("<script") == 2
    assert "&lt;/p&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "=&gt; Envoy dials 10.44.0.2:9080." in page


def test_without_a_proxy_there_is_no_such_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, "--format", "html"], QUIET) == 0
    assert 'id="proxy"' not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--envoy", "-"], ["--speaks", "http"]])
def test_what_a_picture_can_not_show(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    dump = str(sidecar.DUMPS / "redirect.json")
    assert main([*ASK, *(dump if flag == "-" else flag for flag in flags)], QUIET) == 255
    assert "--envoy" in capsys.readouterr().err
