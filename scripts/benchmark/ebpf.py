"""Capture by eBPF, timed in this process: what a node's installation and a pod's ADD, CHECK and DEL take themselves."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self

from .installation import ROOT, Unavailable
from .processes import CLONE_NEWNET, IFF_UP, SIOCSIFFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from istio_init.kernel.ebpf.installation import Installation
    from istio_init.model.socket_capture import SocketCapture

sys.path.append(str(ROOT))

ADDRESS = "10.1.2.3"
# Shell: gives it to the network namespace that a plugin is called for.
ADD_ADDRESS = f'exec nsenter --net="$CNI_NETNS" ip address add {ADDRESS}/32 dev lo'
# What each step may take, in milliseconds.
LIMITS = {"install": 30.0, "ADD": 2.0, "CHECK": 1.0, "DEL": 1.0}


class Node:
    """A cgroup and a BPF file system of the benchmark's own, from the first `begin` to the end of the `with`.

    This process is in the cgroup then, and the programs see no other process of the machine.
    """

    def __init__(self, directory: Path) -> None:
        self.bpf = directory / "bpf"
        self.cgroup = self._home = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.cgroup:
            self._forget()
            subprocess.run(["umount", self.bpf], check=True)
            self._move(self._home)
            os.rmdir(self.cgroup)

    def begin(self) -> None:
        """Make the node; Unavailable where this machine has no cgroup v2 or refuses the file system."""
        from istio_init.errors import KernelError
        from istio_init.kernel.ebpf.installation import root_cgroup

        if self.cgroup:
            return
        try:
            root = root_cgroup()
        except KernelError as error:
            raise Unavailable(str(error)) from error
        self.bpf.mkdir()
        if subprocess.run(["mount", "-t", "bpf", "bpf", self.bpf], check=False, capture_output=True).returncode:
            raise Unavailable("no BPF file system can be mounted")
        with open("/proc/self/cgroup", encoding="utf-8") as lines:
            own = next(line[3:].strip() for line in lines if line.startswith("0::"))
        self._home, self.cgroup = f"{root}{own}", f"{root}/istio-init-bench-{os.getpid()}"
        os.mkdir(self.cgroup)
        self._move(self.cgroup)

    @property
    def variables(self) -> tuple[tuple[str, str], ...]:
        """By which a program finds this node, and not the machine."""
        return ("ISTIO_INIT_BPF", str(self.bpf)), ("ISTIO_INIT_CGROUP", self.cgroup)

    def _forget(self) -> None:
        shutil.rmtree(self.bpf / "istio-init", ignore_errors=True)

    @staticmethod
    def _move(cgroup: str) -> None:
        with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))


def measure(node: Node, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds on the clock and of processor time of each step in LIMITS, in each round; one before warms the caches."""
    from istio_init.kernel.ebpf import pods
    from istio_init.kernel.ebpf.installation import Installation
    from istio_init.model.rules import Network, PortRange
    from istio_init.model.socket_capture import SocketCapture

    node.begin()
    installation = Installation(node.cgroup, f"{node.bpf}/istio-init")
    own = Network(socket.inet_aton(ADDRESS), 32)
    ports = tuple(PortRange(port, port) for port in (15020, 15090))
    capture = SocketCapture((own,), inbound="all", inbound_ports=ports, outbound="all")
    seconds: dict[str, list[tuple[float, float]]] = {step: [] for step in LIMITS}
    for number in range(rounds + 1):
        with installation.lock():
            installation.uninstall()
            _timed(seconds["install"], partial(installation.install, dns=True))
            installation.detach_dns()  # which the first pod's DEL would do, as no pod here has DNS capture
        with _namespace() as path:
            _timed(seconds["ADD"], partial(pods.add, installation, path, capture))
            cookie = pods.cookie_of(path)
            with installation.lock():
                _timed(seconds["CHECK"], partial(_check, installation, capture, cookie))
            _timed(seconds["DEL"], partial(pods.remove, installation, cookie))
        if not number:
            for runs in seconds.values():
                runs.clear()
    installation.close()
    return seconds


def _check(installation: Installation, capture: SocketCapture, cookie: int) -> None:
    from istio_init.kernel.ebpf import pods

    differences = pods.describe(capture, cookie, pods.read(installation, cookie))
    assert not differences, differences


def _timed(runs: list[tuple[float, float]], step: Callable[[], object]) -> None:
    begin, worked = time.perf_counter(), time.thread_time()
    step()
    runs.append((time.perf_counter() - begin, time.thread_time() - worked))


@contextmanager
def _namespace() -> Iterator[str]:
    """The path of a fresh network namespace that has ADDRESS."""
    opened: list[int] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace can be made")
        opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    path = f"/proc/{os.getpid()}/fd/{opened[0]}"
    subprocess.run(["sh", "-c", ADD_ADDRESS], env={**os.environ, "CNI_NETNS": path}, check=True)
    try:
        yield path
    finally:
        os.close(opened[0])
