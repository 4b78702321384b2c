"""Pages have what their commands print, one after the other in a pod's namespace, and the quick start's commands work.

`python -m integration.project.test_docs`, as root, writes them anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.kit.asking import ask
from integration.kit.endpoints import listener, opened
from integration.kit.namespace import Namespace
from integration.kit.pod import APP, applied, options_of
from integration.kit.program import ROOT, environment
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = ("diagnose.md", "doctor.md", "plan.md", "show.md")
BLOCK = re.compile(r"(?<=^```\n)\$ .*?(?=^```$)", re.MULTILINE | re.DOTALL)
APPLIED = "-u 1337 -i '*' -b '*' -d 15090,15020 --no-enable-ipv6"
# How many connections a kernel tracks at most is the machine's, and so is how much of what doctor checks it has.
LIMIT, PASSED = re.compile(r"of \d+ entries \([\d.]+%\)"), re.compile(r"\d+ checks passed")
# What docs/doctor.md finds: source validation by mark, and the rule by which Docker answers DNS queries.
DOCKER = "-A OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:40000"
APPLY = re.compile(r"^ip netns add try\n.*?^ip netns del try$", re.MULTILINE | re.DOTALL)


class Transcript:
    """A shell in which the pages' commands are run."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._code = 0

    def written(self, page: str) -> str:
        """The page with what its commands print now."""
        return BLOCK.sub(lambda block: "".join(self._run(block[0])), page)

    def _run(self, block: str) -> Iterator[str]:
        for line in block.splitlines():
            if line.startswith("$ "):
                yield f"{line}\n{self._printed(line[2:])}"

    def _printed(self, command: str) -> str:
        command, _, first = command.partition(" | head -")
        program, *words = shlex.split(command)
        if program == "istio-init":
            answer = ask(self._namespace, *words)
            self._code = answer.code
            text = LIMIT.sub("of 262144 entries (0.0%)", answer.output + answer.errors)
            lines = PASSED.sub("23 checks passed", text).splitlines(keepends=True)
            return "".join(lines[: int(first)] if first else lines)
        if program == "istio-iptables":  # what it logs has times in it
            self._namespace.inside(lambda: applied(options_of(shlex.join(words))))
        elif program == "echo":
            return f"{self._code}\n"
        else:
            self._namespace.run(program, *words)
        return ""


def rewritten(name: str) -> tuple[str, str]:
    """A page as it is, and as it should be."""
    page = (ROOT / "docs" / name).read_text()
    with Namespace() as namespace:
        if name == "doctor.md":
            namespace.run("sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=1")
            namespace.run("iptables-legacy", "-w", "-t", "nat", *shlex.split(DOCKER))
            return page, Transcript(namespace).written(page)
        namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
        namespace.run("ip", "address", "add", "192.0.2.10/24", "dev", "eth0")
        for command in ("link set far up", "link set eth0 up", "route add default dev eth0"):
            namespace.run("ip", *command.split())
        if name == "diagnose.md":
            ports = (15001, 15006)
            with contextlib.ExitStack() as sidecar:
                for port in ports:
                    sidecar.enter_context(listener(namespace, IPV4, ("0.0.0.0", port)))
                return page, Transcript(namespace).written(page)
        if name != "show.md":
            return page, Transcript(namespace).written(page)
        # An application's connection, captured and open while the page is followed.
        namespace.inside(lambda: applied(options_of(APPLIED)))
        with (
            listener(namespace, IPV4, ("127.0.0.1", 15001)) as envoy,
            opened(namespace, IPV4, socket.SOCK_STREAM, APP) as application,
        ):
            application.connect(("198.51.100.7", 80))
            with envoy.accept()[0]:
                return page, Transcript(namespace).written(page)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_shows_what_the_commands_print(name: str) -> None:
    page, now = rewritten(name)
    assert BLOCK.findall(page)
    assert page == now, "python -m integration.project.test_docs writes it anew"


def test_the_quick_start_applies_the_rules_and_removes_them(namespace: Namespace) -> None:
    """Its namespace exists already, with a name and a lock of its own."""
    block = APPLY.search((ROOT / "docs" / "quickstart.md").read_text())
    assert block
    _, *commands, _ = block[0].replace("netns/try", f"netns/{namespace.name}").splitlines()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    answers = [
        subprocess.run(
            shlex.split(command), env=environment(namespace, {"PATH": path}), capture_output=True, text=True, check=True
        )
        for command in commands
    ]
    _, checked, shown, cleaned = answers
    assert checked.stdout == "in place (legacy)\n"
    assert "-A" not in namespace.run("iptables-legacy-save", "-t", "nat")
    assert shown.stdout.startswith("in place (legacy")
    assert "cleaned up" in cleaned.stderr


if __name__ == "__main__":
    for each in PAGES:
        (ROOT / "docs" / each).write_text(rewritten(each)[1])
