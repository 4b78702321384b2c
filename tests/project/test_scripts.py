"""Every script in scripts/ says what it does, does nothing else while it says so, and refuses what it does not know."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and os.access(path, os.X_OK))


def run(name: str, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    interpreter = str(Path(sys.executable).parent)
    return subprocess.run(
        [ROOT / "scripts" / name, *arguments],
        env={"PATH": path or f"{interpreter}:{os.environ['PATH']}", "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_are_scripts() -> None:
    assert {"demo", "image", "release", "sbom", "test"} <= set(SCRIPTS)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_printed_and_nothing_else_is_done(name: str, option: str) -> None:
    done = run(name, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"scripts/{name}" in done.stdout or f"usage: {name}" in done.stdout
    assert len(done.stdout.splitlines()) >= 3


def python_scripts() -> list[str]:
    first = {
        path.name: path.read_bytes().partition(b"\n")[0] for path in (ROOT / "scripts").iterdir() if path.is_file()
    }
    return sorted(name for name, line in first.items() if b"python" in line or name.endswith(".py"))


# Runs a script whose main() is interrupted before it does anything.
INTERRUPTED = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(path.parent))
sys.argv = [str(path), "a", "b"]
text = path.read_text()
begin = text.rindex('\\nif __name__ == "__main__":')
def main(*_): raise KeyboardInterrupt
values = {"__name__": "script", "__file__": str(path)}
exec(compile(text[:begin], str(path), "exec"), values)
exec(compile(text[begin:], str(path), "exec"), values | {"__name__": "__main__", "main": main})
"""


@pytest.mark.parametrize("name", python_scripts())
def test_ctrl_c_leaves_no_traceback(name: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(ROOT / "scripts" / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("name", ["demo", "image", "sbom", "release", "bundle-cni", "bench"])
def test_an_unknown_option_is_refused_in_one_line(name: str) -> None:
    done = run(name, "--no-such-option")
    assert done.returncode
    assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [b"", b"no archive"])
def test_what_docker_save_did_not_write_is_no_image(arguments: bytes) -> None:
    done = subprocess.run([ROOT / "scripts/sbom"], input=arguments, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"sbom: standard input: ")
    assert b"Traceback" not in done.stderr


def test_links_to_other_sites_are_well_written() -> None:
    done = run("links")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://github.com/a", "not https"),
        ("https://example.org/a", "example.org is not among the sites in scripts/links"),
        ("https://github.com:99999/", "Port out of range 0-65535"),
        ("https://a@github.com/", "has a user or a port"),
        ("https://github.com/\u4e2d", "has characters that must be escaped"),
        ("https://github.com/a", ""),
    ],
)
def test_a_bad_link_is_named(address: str, why: str) -> None:
    assert runpy.run_path(str(ROOT / "scripts" / "links"))["fault"](address) == why
