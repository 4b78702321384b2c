"""The init container that options mean: as docs/deploy.md has it, as Kubernetes' API takes it, and read back."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.kit.command_lines import command_lines, running
from istio_init.cli.app import main
from istio_init.formats import yaml_json
from istio_init.options.arguments import arguments
from istio_init.options.manifest import IMAGE, container
from istio_init.options.table import OPTIONS, Options
from tests.kit.options import from_pod_file, options
from tests.planning.cases import CASES, argv

ROOT = Path(__file__).parents[2]
SCHEMA = "1.34"

every_option = st.tuples(command_lines, running).map(lambda parts: options([*parts[0], *parts[1]], {}))


def options_of(*words: str) -> Options:
    meant = options(words, {})
    assert meant is not None
    return meant


def pod(init: dict[str, Any]) -> dict[str, Any]:
    spec = {"initContainers": [init], "containers": [{"name": "app", "image": "app"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}


def snippet() -> dict[str, Any]:
    """The init container to paste, of docs/deploy.md."""
    match = re.search(
        r"^```yaml\n(initContainers:.*?)^```$", (ROOT / "docs/deploy.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert match
    text: dict[str, Any] = yaml.safe_load(match[1])
    only: dict[str, Any] = text["initContainers"][0]
    return only


def test_it_is_the_container_of_the_docs() -> None:
    documented = snippet()
    desired = container(options_of(*documented["args"][1:]))
    assert desired.pop("resources")
    assert desired == documented


@pytest.mark.parametrize("name", CASES)
def test_kubernetes_takes_it(name: str) -> None:
    for validation in ([], ["--run-validation", "--skip-rule-apply"]):
        init = container(options_of(*argv(name), *validation), "registry.example/istio-init:0.1.0")
        kubernetes_validate.validate(pod(init), SCHEMA, strict=True)


def test_the_schema_would_notice() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="argz"):
        kubernetes_validate.validate(pod({**container(options_of()), "argz": []}), SCHEMA, strict=True)


def test_a_container_that_only_validates_has_no_capability() -> None:
    only = container(options_of("--run-validation", "--skip-rule-apply", "-u", "2000", "-g", "3000"))
    assert only["name"] == "istio-validation"
    rights = only["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert (rights["runAsUser"], rights["runAsGroup"], rights["runAsNonRoot"]) == (2000, 3000, True)
    assert container(options_of("--skip-rule-apply", "-u", "0"))["securityContext"]["runAsUser"] == 1337


@settings(max_examples=300)
@given(every_option)
def test_arguments_mean_the_options_they_are_made_from(meant: Options | None) -> None:
    assert meant is not None
    assert options(arguments(meant), {}) == meant


@given(every_option, st.sampled_from(["yaml", "json"]))
def test_a_manifest_is_read_back_as_the_same_options(meant: Options | None, form: str) -> None:
    assert meant is not None
    text = yaml_json.dump({"initContainers": [container(meant)]}, form)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        read = from_pod_file(file.name, {}, lambda _kind, _name: None)
        # A path in the container names nothing here.
        assert read == meant.replace(network_namespace="")


def test_the_property_knows_every_option() -> None:
    """A flag that the strategies leave out would not be tried."""
    observed: set[str] = set()

    @settings(max_examples=300, database=None)
    @given(every_option)
    def look(meant: Options | None) -> None:
        observed.update(each.field for each in OPTIONS if getattr(meant, each.field) != each.default)

    look()
    assert observed == {each.field for each in OPTIONS}


@pytest.mark.parametrize("word", ["y", "n", "on", "1e3", "0x10", "1_000", "~", "null", "1:30", "=", "<<", "é", "\x85"])
def test_no_word_is_anything_but_a_word_to_any_reader_of_yaml(word: str) -> None:
    text = yaml_json.dump({"args": [word]}, "yaml")
    assert text.startswith('args:\n- "')
    assert yaml.safe_load(text) == {"args": [word]}


def test_the_command_prints_what_another_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["-u", "1337", "-i", "*", "-b", "*", "-d", "15090,15021,15020", "-c", "eth$$1"]
    assert main(["manifest", *flags, "--image", "registry.example/istio-init:0.1.0"], {}) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["initContainers"][0]["image"] == "registry.example/istio-init:0.1.0"
    (tmp_path / "init.yaml").write_text(printed)
    again = ["manifest", "--from-pod", str(tmp_path / "init.yaml"), "--output", "json"]
    assert main(again, {}) == 0
    (tmp_path / "init.json").write_text(capsys.readouterr().out)
    assert from_pod_file(str(tmp_path / "init.json"), {}, lambda _kind, _name: None) == options_of(*flags)
    assert IMAGE in (tmp_path / "init.json").read_text()


def test_without_pyyaml_there_is_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["manifest"], {}) == 1
    assert capsys.readouterr().err == (
        "istio-init: YAML needs PyYAML (pip install pyyaml), which is not here: use --output json\n"
    )
    assert main(["manifest", "--output", "json", "-p", "1"], {}) == 0
    (tmp_path / "pod.json").write_text(capsys.readouterr().out)
    assert from_pod_file(str(tmp_path / "pod.json"), {}, lambda _kind, _name: None).envoy_port == 1


def test_an_init_container_cannot_capture_by_ebpf(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", "--capture-backend", "ebpf"], {}) == 255
    output = capsys.readouterr()
    assert output.out == ""
    assert "--capture-backend ebpf: works from the node (istio-init-cni), not inside a pod" in output.err
