"""Ctrl-C at any moment of any verb: no traceback, once the console script's first lines have run."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from istio_init.cli import console

FRAME = re.compile(r'File ".*/istio_init/((?:cli/)?[^"]+)", line (\d+)')
SCRIPT = shutil.which("istio-init", path=str(Path(sys.executable).parent))
VERBS = (
    ["plan", "-i", "*"], ["draw"], ["explain", "-i", "*", "--outbound"], ["prove", "-i", "*", "-b", "*"], ["manifest"],
    ["options", "-i", "*"], ["diagnose", "--help"], ["--help"],
)  # fmt: skip
RUNS, LONGEST = 40, 0.7
# What Python's own start, pip's wrapper and the end of a process make of it.
CODES = {0, 1, 130, -signal.SIGINT}


def interrupted(number: int, delay: float) -> tuple[int, str]:
    """The exit code and the errors of a run that gets SIGINT after so many seconds."""
    assert SCRIPT, "the console script is not installed beside this Python"
    # A shell's background job, as this test may be one, ignores SIGINT, and so would the verb.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", SCRIPT, *VERBS[number % len(VERBS)]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    return process.returncode, errors


def test_no_traceback_at_any_moment() -> None:
    delays = random.Random(0)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(interrupted, range(RUNS), [delays.uniform(0, LONGEST) for _ in range(RUNS)]))
    assert {code for code, _ in runs} <= CODES
    assert 130 in {code for code, _ in runs} or -signal.SIGINT in {code for code, _ in runs}
    assert [errors for _, errors in runs if "Traceback" in errors and _is_ours(errors)] == []


def _is_ours(errors: str) -> bool:
    """Whether a traceback comes from behind the line that sets the signal."""
    module = Path(console.__file__)
    first = next(number for number, line in enumerate(module.read_text().splitlines(), 1) if "SIG_DFL)" in line)
    frames = [(path, int(line)) for path, line in FRAME.findall(errors)]
    return any(
        path not in {"__init__.py", "cli/__init__.py"} and (path != "cli/console.py" or line > first)
        for path, line in frames
    )
