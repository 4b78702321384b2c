"""The agent's process with more connections than it may have, and with a log that is not read."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from integration.kit.node_agent import NodeAgent, until
from integration.kit.program import ROOT
from istio_init.cni.plugin.agent_client import AgentClient
from tests.kit.cluster_api import cluster_api

IDLE = 100


@contextmanager
def limited(directory: pathlib.Path, files: str) -> Iterator[NodeAgent]:
    """An agent that may open so many files, the soft limit and the hard one, as a runtime sets them."""
    with cluster_api(directory) as api, NodeAgent(directory, api, prefix=("prlimit", f"--nofile={files}")) as agent:
        agent.ready()
        yield agent


def troubles(agent: NodeAgent) -> tuple[str, ...]:
    client = AgentClient(str(agent.socket))
    try:
        return client.health()
    finally:
        client.close()


def test_idle_connections_beyond_the_soft_limit_of_files_keep_no_pod_waiting(tmp_path: pathlib.Path) -> None:
    with limited(tmp_path, "64:1024") as agent, ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(agent.socket))
        assert troubles(agent) == ()
        assert agent.is_ready()


@pytest.mark.parametrize("which", ["plugin", "probes"])
def test_no_more_files_than_it_may_open(tmp_path: pathlib.Path, which: str) -> None:
    """Some clients are let go. The agent goes on, and its log stays JSON."""
    with limited(tmp_path, "64:64") as agent:
        with ExitStack() as stack:
            for _ in range(IDLE):
                if which == "plugin":
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(agent.socket))
                else:
                    stack.enter_context(socket.create_connection(("127.0.0.1", agent.port)))
            if which == "plugin":
                assert agent.is_ready()
            else:
                until(lambda: "out of system resource" in agent.log, "the error")
        assert troubles(agent) == ()
        assert agent.is_ready()
        assert all("msg" in json.loads(line) for line in agent.log.splitlines())
        assert agent.log.count("out of system resource") <= 1


def test_a_log_that_is_not_read_stops_nothing(tmp_path: pathlib.Path) -> None:
    with cluster_api(tmp_path) as api:
        agent = NodeAgent(tmp_path, api)
        with subprocess.Popen(agent.command, cwd=ROOT, stderr=subprocess.PIPE) as process:
            until(lambda: bool(api.requests_of("GET", "/pods")) and agent.socket.exists(), "the agent")
            line = json.dumps({"msg": "x" * 8000})
            for _ in range(50):
                client = AgentClient(str(agent.socket))
                client.report({"command": "ADD", "code": 0, "seconds": 0.1}, [line])
                client.close()
            assert troubles(agent) == ()
            process.terminate()
            assert process.wait(60) == 0
