"""The agent's process with more connections than it may have, a log that is not read, and clients of other users."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from integration.kit.node_agent import NodeAgent, until
from integration.kit.program import ROOT
from istio_init.cni.plugin.agent_client import AgentClient
from tests.kit.cluster_api import cluster_api

IDLE = 100
# A client of another user: its argument is the socket.
OTHER_USER = """
import os, socket, sys
client = socket.socket(socket.AF_UNIX)
os.setgid(65534)
os.setuid(65534)
try:
    client.connect(sys.argv[1])
    client.sendall(b'{"version": 1, "ask": "health"}\\n')
    print("answered" if client.recv(100) else "refused")
except OSError as error:
    print(type(error).__name__)
"""


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


@pytest.mark.parametrize(
    ("mode", "answers"),
    [(0o600, {"PermissionError"}), (0o666, {"refused", "ConnectionResetError", "BrokenPipeError"})],
)
def test_a_client_of_another_user_gets_no_answer(tmp_path: pathlib.Path, mode: int, answers: set[str]) -> None:
    """Not even if an administrator has opened the socket's mode: the kernel tells who has connected."""
    with cluster_api(tmp_path) as api, tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: S103 (another user has to reach the socket)
        agent = NodeAgent(tmp_path, api)
        agent.socket = pathlib.Path(directory, "agent.sock")
        with agent:
            agent.ready()
            if mode != 0o600:
                agent.socket.chmod(mode)
            command = [sys.executable, "-c", OTHER_USER, str(agent.socket)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stdout.strip() in answers
            assert ("refused a process of user 65534" in agent.log) == (mode != 0o600)
            assert troubles(agent) == ()
