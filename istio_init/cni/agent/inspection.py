"""Determines the state of this node's pods, by running `istio-init cni repair`.

A process that has entered a pod's user namespace cannot leave it, and one with an event loop should not fork. What that
costs, a start of Python, is paid once for all pods.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from istio_init.errors import InitError, shown
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Seconds for all pods; bytes of the report and of what else is said.
PATIENCE, LONGEST = 300.0, 8 << 20


class InspectedPod(Record):
    """What is known of one pod's rules, as `cni repair` has it."""

    namespace: str
    name: str
    uid: str
    state: str
    why: str
    fixed: bool = False
    differences: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The pod's name, with its namespace."""
        return f"{self.namespace}/{self.name}"


class Inspector:
    """Runs `cni repair`, one at a time. `flags` say where networks and the runtime are."""

    def __init__(self, flags: Sequence[str], command: Sequence[str] | None = None) -> None:
        self._command = [*(program() if command is None else command), "cni", "repair", "--direct", "--output=json"]
        self._command += flags
        self._one = asyncio.Lock()

    async def inspect(self, *, fix: bool) -> Mapping[str, Any]:
        """The report as JSON has it; with `fix`, what should be captured is. InitError where there is none."""
        async with self._one:
            child = await asyncio.create_subprocess_exec(
                *self._command, *(["--fix"] if fix else []), stdout=PIPE, stderr=PIPE, limit=LONGEST
            )
            try:
                async with asyncio.timeout(PATIENCE):
                    report, errors = await child.communicate()
            except TimeoutError:
                raise InitError(f"cni repair: not done after {PATIENCE:g} s") from None
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        try:
            document: Mapping[str, Any] = json.loads(report)
            states(document)
        except (ValueError, KeyError, TypeError) as error:
            last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise InitError(f"cni repair: exit {child.returncode}: {shown(last or str(error), 300)}") from error
        return document


def states(document: Mapping[str, Any]) -> list[InspectedPod]:
    """The pods in a report; KeyError or TypeError where it is none."""
    return [
        InspectedPod(
            str(each["namespace"]), str(each["pod"]), str(each["uid"]), str(each["state"]), str(each["why"]),
            fixed=each["fixed"] is True, differences=tuple(map(str, each["differences"])),
        )
        for each in document["pods"]
    ]  # fmt: skip


def program() -> list[str]:
    """The command line that started this process, up to its subcommand: the same program, wherever it is installed."""
    words = sys.orig_argv
    begin = next((n for n, pair in enumerate(pairwise(words)) if pair == ("cni", "agent")), 1)
    return [sys.executable, *words[1:begin]]
