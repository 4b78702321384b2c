"""Finds the processes of a container by the control groups in /proc, without a container runtime."""

from __future__ import annotations

import os

from istio_init.errors import KernelError, shown

# The shortest prefix of a container's id that is taken for one: runtimes print 12 of its 64 digits.
SHORTEST_ID = 8
_DIGITS = frozenset("0123456789abcdef")
_ID_LENGTH = 64


def namespace_path(pid: int) -> str:
    """The path of a process' network namespace; KernelError where there is no such process."""
    path = f"/proc/{pid}/ns/net"
    if not os.path.lexists(path):
        raise KernelError(f"process {pid}: there is none; give the id that it has in this PID namespace")
    return path


def pid_of(container: str, proc: str = "/proc") -> int:
    """The lowest process id in a container, which an id or a prefix of it names; KernelError where not one is meant.

    The id may bear a runtime's scheme, as in Kubernetes' status (containerd://...).
    """
    prefix = container.rpartition("://")[2].lower()
    if len(prefix) < SHORTEST_ID or not _DIGITS.issuperset(prefix):
        raise KernelError(
            f"container {shown(container)}: not a container's id: at least {SHORTEST_ID} of its hexadecimal digits"
        )
    pids: dict[str, int] = {}
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        for each in _containers(f"{proc}/{pid}/cgroup"):
            if each.startswith(prefix):
                pids.setdefault(each, pid)
    if not pids:
        raise KernelError(f"container {shown(container)}: no process here is in such a control group; is it running?")
    if len(pids) > 1:
        raise KernelError(f"container {shown(container)}: {len(pids)} containers' ids begin so; give more digits")
    return next(iter(pids.values()))


def of_process(pid: int, proc: str = "/proc") -> set[str]:
    """The ids of the containers that a process is in; none where it is in none, or is gone."""
    return _containers(f"{proc}/{pid}/cgroup")


def _containers(path: str) -> set[str]:
    """The container ids in a process' control group paths: runs of 64 hexadecimal digits; none where it is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return set()
    # .../docker-ID.scope, .../cri-containerd-ID.scope, /docker/ID, /kubepods/.../ID
    words = "".join(character if character in _DIGITS else " " for character in text).split()
    return {word for word in words if len(word) == _ID_LENGTH}
