"""docs/inject.md: each snippet is applied, and does what the page says."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from istio_init.cli.app import main

PAGE = (Path(__file__).parents[2] / "docs" / "inject.md").read_text()
SNIPPET = re.compile(r"^<!-- apply: (\w+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MANIFEST = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMAGE = "registry.example/istio-init:0.1.0"


def snippets(kind: str) -> list[str]:
    return [text.strip() for result, text in SNIPPET.findall(PAGE) if result == kind]


def test_each_way_has_its_snippet() -> None:
    assert [kind for kind, _ in SNIPPET.findall(PAGE)] == ["file", "pipe", "file", "policy", "policy", "values"]


@pytest.mark.parametrize("command", snippets("file"))
def test_the_commands_for_files(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shop = MANIFEST.search(PAGE)
    assert shop
    (tmp_path / "shop.yaml").write_text(shop[1])
    program, *arguments = shlex.split(command)
    assert program == "istio-init"
    assert main(arguments, {}) == 0
    spec = yaml.safe_load((tmp_path / "shop.yaml").read_text())["spec"]["template"]["spec"]
    (result,) = spec["initContainers"]
    assert result["image"] == IMAGE
    assert result["args"][result["args"].index("-u") + 1] == "1234"
    assert result["name"] == ("istio-validation" if "--validation" in arguments else "istio-init")
    assert main(["inject", "-f", "shop.yaml", "--remove", "--in-place"], {}) == 0
    assert (tmp_path / "shop.yaml").read_text() == shop[1]


def test_the_command_in_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = MANIFEST.search(PAGE)
    assert shop
    (command,) = snippets("pipe")
    reader, program = command.split(" | ")
    assert reader == "cat shop.yaml"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(shop[1].encode())))
    assert main(shlex.split(program)[1:], {}) == 0
    assert f"image: {IMAGE}\n" in capfd.readouterr().out


@pytest.mark.parametrize("command", snippets("policy"))
def test_the_commands_for_policies(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed, behind = command.split(" | ")
    assert behind == "kubectl apply -f -"
    assert main(shlex.split(printed)[1:], {}) == 0
    policy, binding = yaml.safe_load_all(capsys.readouterr().out)
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert f"'{IMAGE}'" in str(policy)


def test_istios_value_has_the_slash_that_it_needs() -> None:
    (values,) = snippets("values")
    assert yaml.safe_load(values) == {"global": {"proxy_init": {"image": IMAGE}}}
