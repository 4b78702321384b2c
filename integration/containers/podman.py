"""Podman with storage and state of its own, in a node's network."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from integration.containers.engine import Engine, remove_cgroups, tool
from integration.containers.node import NETWORK, Node

CONFIGURATION = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{networks}"
"""
# The parent of all pods' cgroups, which podman leaves behind.
CGROUP = "libpod_parent"


class Podman:
    """From `with` to its end, which removes all its pods and images; `networks` is the directory of its networks."""

    def __init__(self, node: Node, networks: Path | None = None) -> None:
        self.node, self.networks, self.directory = node, networks or node.networks, node.directory / "podman"

    def __enter__(self) -> Self:
        self.directory.mkdir()
        self._was_there = any(Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"))
        text = CONFIGURATION.format(plugins=self.node.programs, networks=self.networks)
        Path(self.directory, "containers.conf").write_text(text)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.run("pod", "rm", "--all", "--force", "--time=0")
        # Podman mounts its storage over itself.
        subprocess.run(["umount", "--quiet", self.directory / "root/overlay"], check=False)
        shutil.rmtree(self.directory)
        if not self._was_there:
            remove_cgroups(CGROUP)

    def completed(self, *arguments: str, text: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """A podman command, whatever its exit status is."""
        own = [f"--root={self.directory}/root", f"--runroot={self.directory}/run", f"--tmpdir={self.directory}/tmp"]
        environment = {**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")}
        command = [*self.node.entered(), tool("podman"), *own, *arguments]
        return subprocess.run(command, input=text, env=environment, capture_output=True, check=False)

    def run(self, *arguments: str, text: bytes | None = None) -> str:
        """The standard output of a podman command; AssertionError where it fails."""
        done = self.completed(*arguments, text=text)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def load(self, engine: Engine, *tags: str) -> None:
        """Bring images in from the Docker Engine."""
        self.run("load", text=engine.cli("save", *tags))

    def play(self, manifest: str) -> subprocess.CompletedProcess[bytes]:
        """Start a pod from its manifest, in the node's network."""
        return self.completed("kube", "play", f"--network={NETWORK}", "-", text=manifest.encode())

    def inspect(self, name: str) -> dict[str, Any]:
        """Everything about a container."""
        document: list[dict[str, Any]] = json.loads(self.run("container", "inspect", name))
        return document[0]

    def log(self, name: str) -> str:
        """What a container wrote to both of its outputs."""
        done = self.completed("logs", name)
        return (done.stdout + done.stderr).decode()

    @contextlib.contextmanager
    def removing(self, pod: str) -> Iterator[None]:
        """Remove the pod in the end, whatever became of it."""
        try:
            yield
        finally:
            self.run("pod", "rm", "--ignore", "--force", "--time=0", pod)
