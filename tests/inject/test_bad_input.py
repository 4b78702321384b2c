"""What is no manifest, or one that Istio refuses: one line, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from istio_init.cli.app import main

POD = "kind: Pod\nmetadata: {name: web, annotations: {%s}}\nspec: {containers: [{name: web}]}\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20)
)
BAD: list[tuple[bytes, str]] = [
    (LAUGHS.encode(), "line 6: more than 1000000 values"),
    (b"*a", "not YAML: line 1: found undefined alias"),
    (b"a: &a 1\n---\nb: *a", "not YAML: line 3: found undefined alias"),
    (b"a: &a [*a]", "line 1: the alias *a is inside of what it stands for"),
    (b"kind: Pod\nspec:\n  containers: []\n  containers: []\n", "line 4: the key 'containers' is given twice"),
    (b'{"kind": "Pod", "kind": "Pod"}', "the key 'kind' is given twice"),
    (b"a: !!python/object/apply:os.system [true]", "not YAML: line 1: could not determine a constructor for the tag"),
    (b"a: !Custom x", "not YAML: line 1: could not determine a constructor for the tag"),
    (b"kind: Pod\nspec:\n\tcontainers: []\n", "not YAML: line 3: found character that cannot start any token"),
    (b"[" * 100_000, "nested too deeply"),
    (b"kind: \xff\xfe", "not text in UTF-8"),
    (b"kind: \x00", "not YAML: "),
    ("kind: \ud800".encode("utf-8", "surrogatepass"), "not text in UTF-8"),
    (b"kind: {{ .Values.kind }}\n", "not YAML: line 1: "),
    ((POD % "traffic.sidecar.istio.io/includeInboundPorts: 'http'").encode(), "Pod web: annotation traffic.sidecar"),
    ((POD % "sidecar.istio.io/inject: true").encode(), "Pod web: annotation sidecar.istio.io/inject: 'True': "),
    ((POD % "proxy.istio.io/config: '['").encode(), "Pod web: annotation proxy.istio.io/config: '['"),
    ((POD % "proxy.istio.io/config: 'proxyMetadata: {A: true}'").encode(), "proxyMetadata.A: 'true': no text"),
    (b"a: 1\n---\n" + (POD % "sidecar.istio.io/interceptionMode: HALF").encode(), "document 2: Pod web: annotation"),
    (b"kind: Pod\nspec: {containers: [web]}\n", "Pod without a name: containers[0]: 'web': not an object"),
    (b"kind: Pod\nspec: {containers: web}\n", "Pod without a name: containers: 'web': not a list"),
    (b"kind: Pod\nspec: {initContainers: {}, containers: []}\n", "initContainers: '{}': not a list"),
    (b"items: [web]\n", "document: 'web': not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "why"), BAD)
@pytest.mark.parametrize("direction", ["--in-place", "--check", "--remove --in-place", ""])
def test_one_line_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, why: str, direction: str
) -> None:
    path, good = tmp_path / "b.yaml", tmp_path / "a.yaml"
    path.write_bytes(data)
    good.write_text(POD % "")
    code = main(["inject", "-f", str(tmp_path if direction else path), *direction.split()], {})
    output = capsys.readouterr()
    # Taking a container out asks for no annotation, and for init containers alone.
    assert code == 255 or "--remove" in direction
    assert output.out == ""
    if code:
        assert why in output.err.splitlines()[-1]
        assert output.err.splitlines()[-1].startswith("istio-init: ")
    assert path.read_bytes() == data
    assert good.read_text() == POD % ""
    assert sorted(os.listdir(tmp_path)) == ["a.yaml", "b.yaml"]


def test_a_file_of_100_megabytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pod.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert main(["inject", "-f", str(path), "--in-place"], {}) == 255
    assert capsys.readouterr().err.endswith(": longer than 8 MiB: no manifest of a pod is that long\n")
    assert path.stat().st_size == 100_000_000


def test_a_pipe_that_nobody_writes_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pod.yaml")
    assert main(["inject", "-f", str(tmp_path / "pod.yaml")], {}) == 255
    assert capsys.readouterr().err.endswith(": a named pipe; give a file, or - for standard input\n")


def test_control_characters_of_a_file_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pod.yaml"
    pod = "{template: {spec: {containers: [{name: x}], hostNetwork: true}}}"
    path.write_text(f'kind: "Po\\e[31md"\nmetadata: {{name: "a\\nb"}}\nspec: {pod}\n')
    assert main(["inject", "-f", str(path), "--check"], {}) == 0
    assert "\x1b" not in (output := capsys.readouterr().err)
    assert output.count("\n") == 1
    path.write_text("# \x7f\nkind: Pod\nspec: {containers: [{name: x}]}\n")
    assert main(["inject", "-f", str(path), "--check"], {}) in {1, 255}
    assert "\x7f" not in capsys.readouterr().out
