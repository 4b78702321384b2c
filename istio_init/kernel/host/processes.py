"""The processes of a network namespace, and the ids that their sockets have, from /proc."""

from __future__ import annotations

import os

from istio_init.record import Record

# What holds a pod's namespaces open, and sends nothing.
SILENT = frozenset({"pause", "catatonit"})
# What a link in /proc/PID/fd begins with, and how many processes and descriptors of each are looked through.
SOCKET = "socket:["
MOST_PROCESSES, MOST_DESCRIPTORS = 256, 65_536


class NetworkProcess(Record):
    """A process by its id and name; `uid` and `gid` are the file system's, which its sockets get (xt_owner).

    `stopped` says that a signal or a debugger holds it.
    """

    pid: int
    name: str
    uid: int
    gid: int
    stopped: bool = False


def sharing_network(pid: int, proc: str = "/proc") -> tuple[NetworkProcess, ...]:
    """The processes in the network namespace of one, by id, as far as /proc shows them."""
    try:
        namespace = os.stat(f"{proc}/{pid}/ns/net")
    except OSError:
        return ()
    return in_network(namespace.st_ino, proc)


def in_network(inode: int, proc: str = "/proc") -> tuple[NetworkProcess, ...]:
    """The processes in the network namespace with this inode, by id, as far as /proc shows them."""
    processes = []
    for each in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        try:
            if os.stat(f"{proc}/{each}/ns/net").st_ino == inode:
                processes.append(_process(each, proc))
        except (OSError, KeyError, ValueError):
            continue
    return tuple(each for each in processes if each.name not in SILENT)


def _process(pid: int, proc: str) -> NetworkProcess:
    with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    uid, gid = (int(fields[name].split("\t")[3]) for name in ("Uid", "Gid"))
    return NetworkProcess(pid, fields["Name"], uid, gid, fields.get("State", "")[:1] in {"T", "t"})


def socket_owners(members: tuple[NetworkProcess, ...], proc: str = "/proc") -> dict[int, NetworkProcess]:
    """The first of these processes that has each socket open, by the socket's inode, as far as /proc shows them."""
    owners: dict[int, NetworkProcess] = {}
    for each in members[:MOST_PROCESSES]:
        try:
            names = os.listdir(f"{proc}/{each.pid}/fd")
        except OSError:
            continue
        for name in names[:MOST_DESCRIPTORS]:
            try:
                target = os.readlink(f"{proc}/{each.pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith(SOCKET):
                owners.setdefault(int(target.removeprefix(SOCKET).rstrip("]")), each)
    return owners
