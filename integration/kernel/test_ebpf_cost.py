"""What capture by eBPF takes of its own, by scripts/bench: in processor time, with room for a slow machine."""

from __future__ import annotations

import json
import subprocess
import sys

from integration.kit.program import ROOT
from scripts.benchmark.ebpf import LIMITS

# This test is to notice a step that became another kind of work, such as waiting for RCU or walking all pods.
ROOM = 4


def test_each_step_takes_about_what_it_may() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench"), "--only", "ebpf", "--rounds", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["ebpf"]
    assert steps.keys() == LIMITS.keys()
    for step, runs in steps.items():
        assert min(processor for _, processor in runs) * 1000 <= ROOM * LIMITS[step], step
