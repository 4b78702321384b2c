"""Every verb prints JSON, and what it prints is what its schema says.

integration/cli/test_schemas.py has the verbs that need a kernel.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.main import get_command

from istio_init.cli.app import app, main
from scripts.generate import schemas
from scripts.generate.schema_table import SCHEMAS
from tests.envoy.sidecar import DUMPS
from tests.kit.schemas import DIRECTORY, validated
from tests.kit.transcripts import transcribed

DNS = "--redirect-dns --dns-servers 10.0.0.10"
QUIET = {"ENVOY_USER": "0"}
RULES = "-u 1337 -i '*' -b '*' -d 15090"
DUMP = f"--pod-address 10.44.0.2 --envoy {DUMPS / 'redirect.json'}"
SAVED = str(Path(__file__).parents[1] / "planning" / "golden" / "article.txt")
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: app, image: a}\n"


def test_the_files_are_made_from_the_table_and_are_schemas() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == {f"{name}.v1.json" for name in SCHEMAS}
    for name in SCHEMAS:
        text = (DIRECTORY / f"{name}.v1.json").read_text()
        assert text == schemas.file(name), "python -m scripts.generate writes them anew"
        Draft202012Validator.check_schema(json.loads(text))


def test_the_page_is_made_from_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    assert page == transcribed(schemas.page()), "python -m scripts.generate writes it anew"


def test_every_verb_prints_json() -> None:
    top = get_command(app({}))
    verbs = {name: each for name, each in top.commands.items() if name != "cni"}  # type: ignore[attr-defined]
    verbs |= {f"cni {name}": each for name, each in top.commands["cni"].commands.items()}  # type: ignore[attr-defined]
    verbs.pop("cni agent")  # which never ends; its log may be JSON
    for name, verb in verbs.items():
        (output,) = [each for each in verb.params if "--output" in each.opts]
        assert "json" in output.metavar.split("|"), name
    named = {verb.split(" --")[0] for verbs, _, _ in SCHEMAS.values() for verb in verbs.split(", ")}
    assert named == verbs.keys() - {"manifest"}


@pytest.mark.parametrize(
    ("schema", "line", "code"),
    [
        ("run", f"apply --dry-run {RULES}", 0),
        ("run", f"apply --dry-run {RULES} --native-nftables", 0),
        ("run", "clean --dry-run", 0),
        ("diagnose", f"diagnose --from-save {SAVED}", 0),
        ("diagnose", f"diagnose --from-save {SAVED} --to 10.1.2.3:443", 0),
        ("diagnose", "diagnose --from-pod pod.yaml", 0),
        ("diagnose", "diagnose --netns /nowhere", 4),
        ("options", f"options {RULES}", 0),
        ("options", f"options --from-save {SAVED}", 0),
        ("check", f"check --from-save {SAVED} {RULES}", 3),
        ("show", f"show --from-save {SAVED} {RULES}", 0),
        ("explain", f"explain {RULES} --outbound --to 10.1.2.3:443", 0),
        ("explain", f"explain {RULES} -m TPROXY --inbound --to :8080", 0),
        ("explain", f"explain {RULES} {DNS} --outbound --protocol udp --to 10.0.0.10:53", 0),
        ("explain", f"explain {RULES} --outbound --uid 1337 --to 192.0.2.10:15001", 0),
        ("explain", f"explain {RULES} --inbound --to [2001:db8::a]:80 --from ::1", 0),
        ("explain", f"explain --from-save {SAVED} --outbound --to :80", 0),
        ("explain-envoy", f"explain {RULES} {DUMP} --url http://ratings:9080/v2", 0),
        ("explain-envoy", f"explain {RULES} {DUMP} --inbound --to :9080", 0),
        ("explain-envoy", f"explain {RULES} {DUMP} --outbound --to :15001", 0),
        ("prove", f"prove {RULES}", 0),
        ("prove", f"prove {RULES} -m TPROXY {DNS} --strict", 1),
        ("prove", f"prove {RULES} {DUMP}", 0),
        ("prove", f"prove {RULES} -o 15021,15090 {DUMP} -x 10.96.0.0/16", 1),
        ("draw", f"draw {RULES} -m TPROXY", 0),
        ("draw", f"draw {RULES} --outbound --to :80", 0),
        ("draw", f"draw {RULES} --inbound --to [2001:db8::a]:80", 0),
        ("draw", f"draw {RULES} --outbound --to :15001 --uid 5", 0),
        ("inject", "inject -f pod.yaml", 0),
        ("inject", "inject -f pod.yaml --check", 1),
        ("inject", "inject -f pod.yaml --in-place", 0),
        ("inject", "inject -f pod.yaml --remove", 0),
        ("inject", "inject -f host.yaml -o out.yaml", 0),
    ],
)  # fmt: skip
def test_what_is_printed_is_what_its_schema_says(
    schema: str, line: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pod.yaml").write_text(POD)
    (tmp_path / "host.yaml").write_text(POD.replace("spec:\n", "spec:\n  hostNetwork: true\n"))
    assert main([*shlex.split(line), "--output", "json"], QUIET) == code
    printed = capsys.readouterr()
    value = validated(printed.out, schema)
    assert printed.err == ""
    if schema == "run":
        assert ("*nat" in value["rules"] or "table inet" in value["rules"]) == ("apply" in line)
    if line == "inject -f pod.yaml":
        assert yaml.safe_load(value["files"][0]["text"])["spec"]["initContainers"]
    if "host.yaml" in line:
        assert value["files"][0]["notes"]
        assert (tmp_path / "out.yaml").exists()


def test_a_policy_is_a_list_of_kubernetes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inject", "--policy", "capture", "--output", "json"], QUIET) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["kind"], len(value["items"])) == ("List", 2)


def test_a_page_is_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "--format", "html", "--output", "json"], QUIET) == 255
    assert "leave --format out" in capsys.readouterr().err


def test_an_error_of_a_dry_run_is_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["apply", "--dry-run", "--output", "json", "--redirect-dns", "--dns-servers", "", "--netns", "/nowhere"]
    assert main(words, QUIET) == 1
    value = validated(capsys.readouterr().out, "run")
    assert value["log"][-1]["level"] == "error"
    assert "/nowhere" in value["summary"]
    assert value["rules"] is None


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_what_is_done_to_a_node(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks, programs, plugin = tmp_path / "net.d", tmp_path / "bin", tmp_path / "istio-init-cni"
    networks.mkdir()
    programs.mkdir()
    plugin.write_text("#!/bin/sh\n")
    plugin.chmod(0o755)
    (networks / "10-a.conflist").write_text('{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "ptp"}]}')
    places = ["--cni-net-dir", str(networks), "--output", "json"]
    more = {"install": ["--plugin", str(plugin)]}.get(verb, [])
    assert main(["cni", verb, *places, "--cni-bin-dir", str(programs), *more], {}) == (verb == "status")
    value = validated(capsys.readouterr().out, "cni-status" if verb == "status" else "cni-change")
    assert value.get("changed") in {None, verb == "install"}


def test_a_document_does_not_fit_what_never_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cni", "install", "--watch", "--output", "json"], {}) == 255
    assert "--log-as-json" in capsys.readouterr().err
