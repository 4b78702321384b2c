"""A Docker Engine of the tests' own: its socket, state and cgroups are its own, and nothing of it outlives it.

It makes no bridge and writes no rule: containers get no network, or another container's. A machine's own
engine, if there is one, is not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import docker

ROOT = Path(__file__).parents[2]

# The distribution's own: a client of another release elsewhere in PATH may not go with this engine.
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 60.0


def tool(name: str) -> str:
    """The distribution's program of this name; AssertionError where it is not installed."""
    path = shutil.which(name, path=SYSTEM)
    assert path, f"{name} is not installed; scripts/test installs it"
    return path


def remove_cgroups(name: str) -> None:
    """Remove the cgroup of this name from all hierarchies, and those that were made in it; none has a process left."""
    for group in Path("/sys/fs/cgroup").glob(f"**/{name}"):
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)


class Daemon:
    """A daemon from the moment it takes connections on its socket until a SIGTERM has ended it."""

    def __init__(self, command: list[str], path: Path, log: Path) -> None:
        self.path, self.log = path, log
        with log.open("w") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env={"PATH": SYSTEM})

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, f"it ended: {self._process.args!r}\n{self.log.read_text()}"
            assert time.monotonic() < end, f"it does not answer: {self._process.args!r}\n{self.log.read_text()}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.path)) == 0

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


class Engine:
    """dockerd from `with` to its end, with its state in `directory`, which has to be on a real disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = f"unix://{directory}/docker.sock"
        self.group = f"istio-init-{os.getpid()}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory.mkdir(parents=True)
            stack.callback(self._remove)
            stack.enter_context(self._daemon())
            self.client = stack.enter_context(contextlib.closing(docker.DockerClient(self.host, timeout=120)))
            stack.callback(self._empty)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def _daemon(self) -> Daemon:
        flags = [f"--data-root={self.directory}/data", f"--exec-root={self.directory}/run"]
        flags += [f"--pidfile={self.directory}/pid", f"--host={self.host}", f"--cgroup-parent=/{self.group}"]
        flags += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        command = [tool("dockerd"), *flags, "--storage-driver=overlay2"]
        return Daemon(command, self.directory / "docker.sock", self.directory / "log")

    def _empty(self) -> None:
        for container in self.client.containers.list(all=True):
            container.remove(force=True)

    def _remove(self) -> None:
        shutil.rmtree(self.directory)
        remove_cgroups(self.group)

    def cli(self, *arguments: str, text: bytes | None = None) -> bytes:
        """The standard output of a docker command; AssertionError where it fails."""
        done = subprocess.run(
            [tool("docker"), *arguments], input=text, env=self.environment, capture_output=True, check=False
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.decode()}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """What makes a docker client, and scripts/image, use this engine."""
        return {**os.environ, "DOCKER": tool("docker"), "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"}
