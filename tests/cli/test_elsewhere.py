"""What needs no kernel works on any system; what needs Linux says so in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAPTURE = "-u 1337 -i * -b *"


def run(line: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.kit.elsewhere", *line.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        (f"istio-iptables {CAPTURE} --dry-run", "*nat\n"),
        (f"istio-iptables {CAPTURE} --dry-run -m TPROXY --enable-ipv6", "# ip"),
        (f"istio-iptables {CAPTURE} --dry-run --native-nftables", "table inet"),
        (f"istio-init explain {CAPTURE} --outbound --to 203.0.113.7:443", "Verdict"),
        (f"istio-init prove {CAPTURE}", ""),
        (f"istio-init draw {CAPTURE} --format mermaid", ""),
        (f"istio-init draw {CAPTURE} --format html", "<!doctype html>"),
        (f"istio-init manifest {CAPTURE}", "initContainers:"),
        ("istio-init --help", "Usage: "),
    ],
)
def test_what_needs_no_kernel_works(line: str, begins: str) -> None:
    done = run(line)
    assert (done.returncode, done.stdout[: len(begins)]) == (0, begins), done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        # None that would act, should it find this machine's kernel after all.
        f"istio-init plan {CAPTURE}", f"istio-init check {CAPTURE}", f"istio-init show {CAPTURE}",
        f"istio-init doctor {CAPTURE}", f"istio-init prove --live {CAPTURE}",
        f"istio-init explain --live --outbound --to :80 {CAPTURE}",
    ],
)  # fmt: skip
def test_what_needs_linux_says_so(line: str) -> None:
    done = run(line)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "needs Linux" in done.stderr.splitlines()[-1]
