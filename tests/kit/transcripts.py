"""Commands in pages: run, and their output put under them.

A block of code whose first line begins with `$ istio-` is a transcript. Each of its lines that begins with `$ ` is run
by a shell, in a directory that holds the pod.yaml of the page, if it shows one, and dump.json, that of a sidecar.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"(?<=^```\n)\$ istio-.*?(?=^```$)", re.MULTILINE | re.DOTALL)
DUMP = Path(__file__).parents[1] / "envoy" / "dumps" / "redirect.json"
POD = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def transcribed(page: str) -> str:
    """Return a page with what its commands print now."""
    with tempfile.TemporaryDirectory() as directory:
        pod = POD.search(page)
        if pod:
            (Path(directory) / "pod.yaml").write_text(pod[1])
        if "dump.json" in page:
            shutil.copyfile(DUMP, Path(directory) / "dump.json")
        return BLOCK.sub(lambda block: _run(block[0], directory), page)


def _run(block: str, directory: str) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "\n".join(f"{command}\n{_output(command.removeprefix('$ '), directory)}" for command in commands)


def _output(command: str, directory: str) -> str:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": directory,
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout
