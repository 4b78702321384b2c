"""docs/cni.md: what root does there happens, and prints what the page shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from integration.kit.namespace import Namespace
from integration.kit.program import ROOT


def test_the_session_on_the_page(namespace: Namespace, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cni.md").read_text()
    blocks = re.findall(r"^```(?:json)?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    pod = next(block for block in blocks if '"runtimeConfig"' in block)
    session = next(block for block in blocks if block.startswith("# export"))
    document = json.loads(pod) | {"run_dir": str(tmp_path / "run"), "log_file": ""}
    (tmp_path / "pod.json").write_text(json.dumps(document))
    # The namespace is there; what was added is not taken away by name.
    shown = session.replace("# ip netns add demo\n", "").replace("demo", namespace.name)
    commands = [line.removeprefix("# ") for line in shown.splitlines() if line.startswith("# ")]
    script = "\n".join(f"printf '%s\\n' {shlex.quote(f'# {command}')}\n{command}" for command in commands)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout
    assert printed == shown
