"""The instructions that are shipped are what clang makes of the source."""

from __future__ import annotations

import subprocess
import sys

from integration.kit.program import ROOT
from istio_init.kernel.ebpf.programs import COMPILER


def test_the_instructions_are_what_clang_makes() -> None:
    major = COMPILER.rpartition(" ")[2]
    command = [sys.executable, str(ROOT / "image" / "bpf" / "build.py"), "--check", f"clang-{major}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
