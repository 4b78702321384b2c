"""`istio-init draw --envoy`: the page shows the proxy's part of a packet's way."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from istio_init.cli.app import main
from istio_init.cli.verbs.subject import ELSEWHERE
from istio_init.model.rules import FAMILIES, IPV6
from tests.envoy import sidecar
from tests.kit import page_cases, page_scripts

if TYPE_CHECKING:
    from istio_init.model.rules import Family

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


def page_model(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """What the scripts of the page are given."""
    assert main([*ASK, "--format", "html", *flags], QUIET) == 0
    output = re.search(r'id="model">(.*?)</script>', capsys.readouterr().out)
    assert output
    model: dict[str, Any] = json.loads(output[1])
    return model


def commands(model: dict[str, Any], family: Family, packets: list[dict[str, Any]]) -> list[str | None]:
    """What the page says how to ask for the proxy's part of packets; None for what is no packet."""
    (answers,) = page_scripts.answers([{"model": model, "family": family, "packets": packets}])
    return [answer and answer["command"] for answer in answers]


def typed_again(command: str, start: str) -> dict[str, Any]:
    """The packet's flags in a command, as they would be typed into the form."""
    assert command.startswith(f"{start} ")
    words = shlex.split(command.removeprefix(start))
    typed: dict[str, Any] = {"inbound": "--inbound" in words, "reply": "--reply" in words}
    empty = {"from": "", "to": "", "protocol": "tcp", "interface": "", "uid": "", "gid": "", "state": "NEW"}
    for flag, unset in {**empty, "mark": "0", "connmark": "0"}.items():
        typed[flag] = words[words.index(f"--{flag}") + 1] if f"--{flag}" in words else unset
    return typed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_for_a_typed_packet_means_that_packet(capsys: pytest.CaptureFixture[str], family: Family) -> None:
    model = page_model(capsys, "--envoy", str(sidecar.DUMPS / "redirect.json"))
    chance = Random(family)
    packets = [page_cases.question(chance) for _ in range(500)]
    for typed, command in zip(packets, commands(model, family, packets), strict=True):
        desired = page_cases.understood(typed)
        assert (command is None) == (desired is None)
        if desired is None or command is None:
            continue
        actual = page_cases.understood(typed_again(command, model["explain"]))
        if not desired.addressed and family == IPV6:
            side = "source" if desired.inbound else "destination"
            desired = desired.replace(**{side: getattr(desired, side).replace(address=ELSEWHERE[IPV6])})
        if not desired.inbound:
            assert actual == desired, command
        else:
            # What comes in has no sender here, so that its ids are left out.
            assert actual == desired.replace(uid=actual and actual.uid, gid=actual and actual.gid), command


def test_the_command_asks_the_same_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    dump = str(sidecar.DUMPS / "redirect.json")
    model = page_model(capsys, "--envoy", dump, "--host", "ratings:9080", "--speaks", "http")
    packet = {**typed_again(f"{model['explain']} --outbound", model["explain"]), "to": "10.96.0.10:9080"}
    (command,) = commands(model, "ipv4", [packet])
    assert command
    program, *words = shlex.split(command)
    assert program == "istio-init"
    assert main(words, QUIET) == 0
    printed = capsys.readouterr().out
    assert "listener: handed on to 0.0.0.0_9080" in printed
    assert "domain ratings:9080" in printed or "domain ratings " in printed
    assert "speaks" not in printed


def test_without_a_proxy_there_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    model = page_model(capsys)
    assert commands(model, "ipv4", [typed_again("x --outbound", "x")]) == [""]
