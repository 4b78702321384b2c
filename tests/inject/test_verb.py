"""The verb: where the text comes from and goes to, and what is said beside it."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

from istio_init.cli.app import main
from istio_init.inject.containers import InitSpec
from istio_init.inject.injector import inject

POD = "kind: Pod\nmetadata: {name: %s}\nspec:\n  # all\n  containers:\n  - name: web # the app\n"
SKIPPED = "kind: Pod\nmetadata: {name: node}\nspec: {hostNetwork: true, containers: [{name: web}]}\n"


def injected(text: str, **request: str) -> str:
    return inject(text, InitSpec(request)).text


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    path = tmp_path / "pod.yaml"
    path.write_bytes((POD % "web").replace("\n", "\r\n").encode())
    return path


def ask(*arguments: object) -> int:
    return main(["inject", *map(str, arguments)], {"ISTIO_INBOUND_PORTS": "80"})


def test_to_standard_output(pod: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    before = pod.read_bytes()
    assert ask("-f", pod) == 0
    output = capfdbinary.readouterr()
    assert output.out == injected(before.decode()).encode()
    assert output.err == b""
    assert pod.read_bytes() == before


def test_from_standard_input(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((POD % "a").encode())))
    assert ask("-f", "-") == 0
    assert capfd.readouterr().out == injected(POD % "a")


def test_to_a_file_even_the_same(pod: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = pod.read_bytes().decode()
    assert ask("-f", pod, "-o", pod.parent / "new.yaml") == 0
    assert (pod.parent / "new.yaml").read_bytes() == injected(before).encode()
    assert ask("-f", pod, "-o", pod) == 0
    assert pod.read_bytes() == injected(before).encode()
    assert capfd.readouterr() == ("", "")


def test_in_place_keeps_what_a_file_is(pod: Path) -> None:
    pod.chmod(0o640)
    link = pod.parent / "link.yaml"
    link.symlink_to(pod)
    before = pod.stat()
    assert ask("-f", link, "--in-place") == 0
    assert link.is_symlink()
    assert stat.S_IMODE(pod.stat().st_mode) == 0o640
    assert pod.stat().st_ino != before.st_ino
    again = pod.stat()
    assert ask("-f", pod, "--in-place") == 0
    # What does not change is not written.
    assert (pod.stat().st_ino, pod.stat().st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    assert sorted(os.listdir(pod.parent)) == ["link.yaml", "pod.yaml"]


def test_there_and_back(pod: Path) -> None:
    before = pod.read_bytes()
    assert ask("-f", pod, "--in-place", "-i", "10.0.0.0/8", "--image", "registry.example/istio-init:1") == 0
    assert b"registry.example/istio-init:1" in pod.read_bytes()
    assert b"10.0.0.0/8" in pod.read_bytes()
    # The caller's environment has no part in it.
    assert b'"80"' not in pod.read_bytes()
    assert ask("-f", pod, "--in-place", "--remove") == 0
    assert pod.read_bytes() == before


def test_a_check_is_a_diff_and_a_code(pod: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask("-f", pod, "--check") == 1
    output = capfd.readouterr().out
    assert output.startswith(f"--- {pod}\n+++ {pod} (injected)\n@@ -")
    assert "+  initContainers: # added by istio-init inject\n" in output
    assert not [line for line in output.splitlines()[2:] if line.startswith("-")]
    assert ask("-f", pod, "--in-place") == 0
    assert ask("-f", pod, "--check") == 0
    assert ask("-f", pod, "--check", "--remove") == 1


def test_a_directory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    files = {"a.yaml": POD % "a", "deep/b.yml": POD % "b", "c.json": '{"kind": "Pod", "spec": {"containers": []}}'}
    other = {".git/d.yaml": "{", ".e.yaml": "{", "README.md": "{"}
    for name, text in {**files, **other}.items():
        (tmp_path / name).write_text(text)
    assert ask("-f", tmp_path) == 0
    out = capfd.readouterr().out
    assert len([each for each in yaml.safe_load_all(out) if each["spec"]["initContainers"]]) == 3
    assert ask("-f", tmp_path, "--in-place") == 0
    for name, text in files.items():
        assert (tmp_path / name).read_text() == injected(text)
    for name, text in other.items():
        assert (tmp_path / name).read_text() == text


def test_who_is_skipped_is_told_with_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pods.yaml"
    path.write_text(f"{SKIPPED}---\n{POD % 'web'}---\nkind: Service\n")
    assert ask("-f", path) == 0
    output = capfd.readouterr().err
    assert output == f"istio-init: {path}: Pod node: skipped: hostNetwork: the pod is in the node's own network\n"
    path.write_text("kind: Service\n")
    assert ask("-f", path) == 0
    assert capfd.readouterr() == ("kind: Service\n", f"istio-init: {path}: no workload\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "--filename (-f): missing: name a manifest, a directory, or - for standard input"),
        (["-f", "POD", "--in-place", "--check"], "--in-place, --check, --output-file (-o): use one of them"),
        (["-f", "POD", "--in-place", "-o", "x"], "--in-place, --check, --output-file (-o): use one of them"),
        (["-f", "-", "--in-place"], "--in-place: standard input can't be replaced; name a file"),
        (["-f", "DIR", "-o", "x"], "is a directory: use --in-place"),
        (["-f", "DIR/empty"], "no file in this directory ends in .yaml, .yml, .json"),
        (["-f", "POD", "-o", "15020,22"], "-o): '15020,22': a file here, not ports: those are --istio-local-outbound"),
        (["-f", "/nonexistent"], "--filename (-f): '/nonexistent': No such file or directory"),
        (["-f", "POD", "-b", "http"], "--istio-inbound-ports (-b): 'http': "),
        (["-f", "POD", "--capture-backend", "ebpf"], "works from the node (istio-init-cni), not inside a pod"),
        (["--policy", "all"], "--policy: 'all': unknown: use capture or image"),
        (["--policy", "image", "-f", "POD"], "--policy: prints a policy, and takes no files"),
        (
            ["--policy", "image", "--kubernetes", "1.33"],
            "--kubernetes: '1.33': has no MutatingAdmissionPolicy",
        ),
        (["--policy", "image", "--kubernetes", "new"], "--kubernetes: 'new': not a version of Kubernetes such as 1.36"),
        (["--policy", "capture", "-b", "http"], "--istio-inbound-ports (-b): 'http': "),
    ],
)
def test_flags_that_make_no_sense(pod: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], why: str) -> None:
    (pod.parent / "empty").mkdir()
    before = pod.read_bytes()
    text = [word.replace("POD", str(pod)).replace("DIR", str(pod.parent)) for word in arguments]
    assert ask(*text) == 255
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert why in output.err
    assert pod.read_bytes() == before


def test_a_disk_that_is_full_leaves_the_file(
    pod: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pod.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert ask("-f", pod, "--in-place") == 1
    output = capfd.readouterr().err
    assert output.startswith("istio-init: ")
    assert "No space left on device" in output
    assert output.count("\n") == 1
    assert pod.read_bytes() == before
    assert os.listdir(pod.parent) == ["pod.yaml"]
