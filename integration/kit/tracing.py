"""Runs under strace: which system calls a run makes, and runs in which the kernel refuses one or a signal comes."""

from __future__ import annotations

import pathlib
import subprocess
import tempfile
from typing import NamedTuple

from integration.kit import program
from integration.kit.namespace import Namespace

UNFINISHED, RESUMED = " <unfinished ...>", " resumed>"


class Traced(NamedTuple):
    """A run's outcome, and strace's line for each system call that was asked for."""

    code: int
    output: str
    log: str
    calls: list[str]

    def having(self, *words: str) -> list[str]:
        """The calls whose line has all of these words."""
        return [call for call in self.calls if all(word in call for word in words)]


def traced(namespace: Namespace, calls: str, *argv: str, inject: str = "") -> Traced:
    """Run istio-iptables, the program and all its descendants watched for these calls (as strace -e trace= has it).

    `inject` is a fault as strace -e inject= has it.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "calls"
        fault = ("-e", f"inject={inject}") if inject else ()
        prefix = ("strace", "-f", "-qq", "-s", "64", "-o", str(path), "-e", f"trace={calls}", *fault)
        done: subprocess.CompletedProcess[str] = program.completed(namespace, *argv, prefix=prefix)
        return Traced(done.returncode, done.stdout, done.stderr, joined(path.read_text().splitlines()))


def joined(lines: list[str]) -> list[str]:
    """One line a call: strace tells a call that another thread's came in between of in two."""
    calls: list[str] = []
    begun: dict[str, int] = {}
    for line in lines:
        thread = line.split(maxsplit=1)[0]
        if RESUMED in line and thread in begun:
            place = begun.pop(thread)
            calls[place] = calls[place].removesuffix(UNFINISHED) + line.partition(RESUMED)[2]
            continue
        if line.endswith(UNFINISHED):
            begun[thread] = len(calls)
        calls.append(line)
    return calls


def commits(run: Traced) -> list[str]:
    """The tables that a run has written, as `ipv4 nat`, one for each write, in order."""
    return [
        ("ipv6 " if "IP6T_SO" in call else "ipv4 ") + call.split('"')[1].partition("\\0")[0]
        for call in run.having("SO_SET_REPLACE")
    ]
