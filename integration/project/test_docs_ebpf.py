"""docs/ebpf.md: what root types there to try it on one namespace happens, and prints what the page shows.

`python -m integration.project.test_docs_ebpf`, as root, writes the session anew.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from integration.kit.ebpf_node import EbpfNode, enclosed
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT

PAGE = ROOT / "docs" / "ebpf.md"
SESSION = re.compile(r"(?<=^```\n)# ip netns add demo\n.*?(?=^```$)", re.MULTILINE | re.DOTALL)
# The port that the kernel chooses for the application, and the one that the page shows.
PORT, SHOWN_PORT = re.compile(r"(?<=10\.1\.2\.3:)\d+"), "41234"
# Commands of the page that are not run: the namespace exists already, under another name, and is deleted at the end.
NOT_RUN = {"ip netns add demo", "ip netns delete demo"}


def printed(session: str) -> str:
    """A session with what its commands print now."""
    commands = [line.removeprefix("# ") for line in session.splitlines() if line.startswith("# ")]
    with EbpfNode() as node, Namespace() as namespace:
        lines = []
        for command in commands:
            lines.append(f"printf '%s\\n' {shlex.quote(f'# {command}')}")
            if command not in NOT_RUN:
                lines.append(command.replace("demo", namespace.name))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        script = [*enclosed(node), "bash", "-c", "\n".join(lines)]
        done = subprocess.run(script, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False)
        assert not done.stderr, done.stderr
        return PORT.sub(SHOWN_PORT, done.stdout.replace(namespace.name, "demo"))


def test_the_session_on_the_page() -> None:
    [session] = SESSION.findall(PAGE.read_text())
    assert printed(session) == session, "python -m integration.project.test_docs_ebpf writes it anew"


if __name__ == "__main__":
    PAGE.write_text(SESSION.sub(lambda match: printed(match[0]), PAGE.read_text()))
