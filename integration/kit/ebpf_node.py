"""A node for capture by eBPF inside this machine: a cgroup that this process moves to, and its own BPF file system.

The programs are attached to that cgroup, so that no other process of the machine runs them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from integration.kit.endpoints import original_destination
from integration.kit.namespace import Namespace
from istio_init.kernel.ebpf import syscall
from istio_init.kernel.ebpf.installation import ALL_HOOKS, Installation, root_cgroup

# The address that the tests give a captured namespace, and one that nobody has.
ADDRESS = "10.1.2.3"
ELSEWHERE = ("203.0.113.9", 443)
# A program that returns 1, which lets a call go on: r0 = 1; exit.
PASSING = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)


class EbpfNode:
    """An installation at a cgroup below the root, from `with` to its end; this process is in the cgroup meanwhile."""

    def __enter__(self) -> Self:
        root = Path(root_cgroup())
        self._home = root / _own_cgroup().lstrip("/")
        self.cgroup = root / f"istio-init-test-{os.getpid()}"
        self.cgroup.mkdir()
        self._directory = self.bpf = tempfile.mkdtemp(prefix="istio-init-bpf-")
        subprocess.run(["mount", "-t", "bpf", "bpf", self._directory], check=True)
        _move(self.cgroup)
        self.installation = Installation(str(self.cgroup), f"{self._directory}/istio-init")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.installation.lock():
            self.installation.uninstall()
        subprocess.run(["umount", self._directory], check=True)
        shutil.rmtree(self._directory)
        _move(self._home)
        self.cgroup.rmdir()

    def again(self) -> Installation:
        """The same installation as another process opens it."""
        return Installation(str(self.cgroup), self.installation.directory)

    def attached(self) -> int:
        """How many programs are attached to the node's cgroup."""
        cgroup = os.open(self.cgroup, os.O_RDONLY)
        try:
            return sum(len(syscall.attached_programs(cgroup, attach_type)) for _, attach_type in ALL_HOOKS.values())
        finally:
            os.close(cgroup)

    def pins(self) -> Iterator[str]:
        """The paths of all pins and directories, from the installation's directory on."""
        top = Path(self.installation.directory)
        return (str(path.relative_to(top)) for path in sorted(top.rglob("*")))


def reached(namespace: Namespace, to: tuple[str, int] = ELSEWHERE) -> tuple[str, int] | None:
    """What the proxy is told of a connection's destination; None where the connection did not come to the proxy."""

    def dial() -> tuple[str, int] | None:
        with socket.socket() as proxy, socket.socket() as client:
            proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            proxy.bind(("0.0.0.0", 15001))
            proxy.listen()
            client.settimeout(1)
            try:
                client.connect(to)
            except OSError:
                return None
            assert client.getpeername() == to
            accepted, (source, _) = proxy.accept()
            with accepted:
                assert source == ADDRESS
                return original_destination(accepted)

    return namespace.inside(dial)


@contextlib.contextmanager
def another_program(node: EbpfNode) -> Iterator[int]:
    """Another program, which lets every call pass, at the node's connect4; its id."""
    kind, attach_type = ALL_HOOKS["cgroup/connect4"]
    cgroup = os.open(node.cgroup, os.O_RDONLY)
    program = syscall.load_program("passing", kind, attach_type, PASSING)
    link = syscall.create_link(program, cgroup, attach_type)
    try:
        yield syscall.attached_programs(cgroup, attach_type)[-1]
    finally:
        for each in link, program, cgroup:
            os.close(each)


def enclosed(node: EbpfNode) -> list[str]:
    """A command to run others by: the node's cgroup is the root that they see, its BPF file system is /sys/fs/bpf.

    What it runs is in a mount and a cgroup namespace of its own.
    """
    unshared = ["unshare", "--cgroup", "--mount", "--propagation", "private"]
    return ["sh", "-ec", _MOVE, "sh", str(node.cgroup), *unshared, "sh", "-ec", _MOUNT, "sh", node.bpf]


# Shell: each does its part with the first argument and goes on with the others.
_MOVE = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'
_MOUNT = """
root=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
umount "$root"
mount -t cgroup2 none "$root"
mount --bind "$1" /sys/fs/bpf
export ISTIO_INIT_CGROUP="$root"
shift
exec "$@"
"""


def _own_cgroup() -> str:
    """The path of this process' cgroup v2, from the root of the hierarchy."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def _move(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
