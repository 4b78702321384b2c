"""A person who calls the plugin with an argument gets an answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from istio_init import __version__


@pytest.mark.parametrize(
    ("flag", "code", "out", "err"),
    [
        ("--version", 0, f"istio-init {__version__}\n", ""),
        ("--help", 0, "1.1.0", ""),
        ("-h", 0, "CNI_COMMAND", ""),
        ("--hel\np", 255, "", "takes no arguments"),
    ],
)
def test_an_argument_is_answered(flag: str, code: int, out: str, err: str) -> None:
    command = [sys.executable, "-m", "istio_init.cni", flag]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == code
    assert out in done.stdout
    assert err in done.stderr
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
