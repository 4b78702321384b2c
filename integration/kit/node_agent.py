"""The agent as a DaemonSet runs it, against directories of its own and an API server in the test's process."""

from __future__ import annotations

import http.client
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from integration.kit.program import ROOT, VERBS
from istio_init.cni.node.conflist import PLUGIN
from tests.cni.networks import LISTS
from tests.kit.cluster_api import ClusterApi, cluster_api

FLANNEL = LISTS["10-flannel"]


def until(condition: Callable[[], bool], what: str) -> None:
    """Return once a condition holds. After failures the agent waits for up to half a minute, a busy machine longer."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class NodeAgent:
    """The agent's process; `options` are further flags. It may be started again and again."""

    def __init__(self, directory: pathlib.Path, api: ClusterApi, *options: str, prefix: tuple[str, ...] = ()) -> None:
        self.directory, self.api, self.options, self.prefix = directory, api, options, prefix
        self.networks, self.programs = directory / "net.d", directory / "bin"
        for each in (self.networks, self.programs):
            each.mkdir(exist_ok=True)
        self.network = self.networks / "10-flannel.conflist"
        self.network.write_text(FLANNEL)
        self.source = directory / "plugin"
        self.source.write_text("#!/bin/sh\nexit 0\n")
        self.source.chmod(0o755)
        self.program = self.programs / PLUGIN
        self.output = directory / "output"
        self.socket = directory / "agent.sock"

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [
            *self.prefix, *VERBS, "cni", "agent", f"--cni-net-dir={self.networks}", f"--cni-bin-dir={self.programs}",
            f"--plugin={self.source}", f"--kubeconfig={self.api.kubeconfig}", "--node=node-1",
            "--listen=127.0.0.1:0", f"--socket={self.socket}", "--log-as-json", *self.options,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        """The process, begun; its log is added to `output`."""
        self._begin = len(self.log)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=output)
        return self.process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
        if error is not None:
            sys.stderr.write(self.log)

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.output.read_text() if self.output.exists() else ""

    @property
    def port(self) -> int:
        """Where its pages are."""
        listening = [line for line in self.log[self._begin :].splitlines() if "listening on" in line]
        return int(listening[-1].partition("listening on port ")[2].partition(" ")[0].rpartition(":")[2])

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def is_ready(self) -> bool:
        """Whether it says that it is."""
        return "listening on" in self.log[self._begin :] and self.get("/readyz")[0] == 200

    def ready(self) -> None:
        """Wait until it is."""
        until(lambda: self.process.poll() is not None or self.is_ready(), "the agent is not ready")
        assert self.process.poll() is None, self.log

    def files(self) -> set[str]:
        """The files in the node's two directories."""
        return {path.name for place in (self.networks, self.programs) for path in place.iterdir()}


@contextmanager
def node_agent(directory: pathlib.Path, *options: str) -> Iterator[NodeAgent]:
    """An agent that is ready, and its API server."""
    with cluster_api(directory) as api, NodeAgent(directory, api, *options) as agent:
        agent.ready()
        yield agent
