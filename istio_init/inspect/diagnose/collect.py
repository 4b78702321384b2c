"""The facts of the calling thread's network namespace that a diagnosis needs beside rules and routing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from istio_init.errors import InitError, KernelError
from istio_init.inspect.diagnose.case import PROXIES, OpenConnection, Resident, ServerSocket
from istio_init.kernel.host import container_files, containers, netns, processes, tcp_connections
from istio_init.kernel.netlink import conntrack, socket_diag
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_init.kernel.host.processes import NetworkProcess
    from istio_init.kernel.host.tcp_connections import Established
    from istio_init.kernel.netlink.conntrack import Flow, Treatment
    from istio_init.model.rules import Network, Ruleset

# Interfaces that nodes have, and pods have not.
NODE_DEVICES = frozenset(
    {"cni0", "docker0", "cbr0", "cilium_host", "cilium_net", "flannel.1", "kube-ipvs0", "nodelocaldns", "vxlan.calico"}
)
DEVICES = "/proc/thread-self/net/dev"
INIT = frozenset({"systemd", "init"})
# The variable by which a sidecar says how it is called.
MODE = b"ISTIO_META_INTERCEPTION_MODE="
LONGEST_ENVIRONMENT = 1 << 20


class Sockets(Record):
    """Who listens and who is connected; None where /proc does not say."""

    listening: frozenset[int] | None = None
    bound: frozenset[int] | None = None
    listeners: tuple[ServerSocket, ...] = ()
    connections: tuple[OpenConnection, ...] = ()


def running() -> tuple[NetworkProcess, ...]:
    """The processes of the calling thread's network namespace but for this one, as far as /proc shows them."""
    return tuple(each for each in processes.in_network(netns.inode()) if each.pid != os.getpid())


def sockets(members: tuple[NetworkProcess, ...]) -> Sockets:
    """The sockets of the namespace; `members` are its processes."""
    try:
        listening, bound = tcp_connections.listening(), tcp_connections.bound()
        established = tcp_connections.established()
    except KernelError:
        return Sockets()
    owners = {number: _resident(each) for number, each in processes.socket_owners(members).items()}
    listeners = tuple(_listeners(owners))
    flows = conntrack.flows()
    if flows is None:
        return Sockets(listening, bound, listeners)
    remote = [each for each in established if not tcp_connections.is_loopback(each.remote[0])]
    return Sockets(listening, bound, listeners, tuple(_connection(each, flows, owners) for each in remote))


def _resident(process: NetworkProcess) -> Resident:
    return Resident(process.name, process.uid, process.gid, process.pid, process.stopped)


def _listeners(owners: Mapping[int, Resident]) -> Iterator[ServerSocket]:
    try:
        listening = socket_diag.listeners()
    except KernelError:
        return
    for each in listening:
        owner = owners.get(each.inode)
        yield ServerSocket(each.address, each.port, owner, each.v6only, each.transparent, each.waiting, each.most)


def _connection(each: Established, flows: Mapping[Flow, Treatment], owners: Mapping[int, Resident]) -> OpenConnection:
    """A connection with what connection tracking has of it, whichever end opened it."""
    redirected, mark = flows.get((*each.local, *each.remote)) or flows.get((*each.remote, *each.local)) or (None, 0)
    return OpenConnection(each.local, each.remote, each.uid, redirected, mark, owners.get(each.inode))


def interfaces() -> tuple[str, ...]:
    """The names of the interfaces."""
    try:
        with open(DEVICES, encoding="utf-8", errors="replace") as file:
            return tuple(line.partition(":")[0].strip() for line in file if ":" in line)
    except OSError:
        return ()


def residents(resident_processes: tuple[NetworkProcess, ...]) -> tuple[tuple[Resident, ...], str]:
    """The processes but for visitors, those that are alike once, and evidence of interception mode NONE."""
    resident_processes = _without_visitors(resident_processes)
    alike: dict[tuple[str, int, int], Resident] = {}
    for each in resident_processes:
        alike.setdefault((each.name, each.uid, each.gid), _resident(each))
    return tuple(alike.values()), next((text for each in resident_processes if (text := _mode_none(each))), "")


def nameservers(residents: Iterable[Resident]) -> tuple[Network, ...]:
    """The servers in the resolv.conf of the first application's container; none where that is not known.

    A process without a container of its own shows the node's file.
    """
    for each in residents:
        if each.pid and not each.is_proxy and containers.of_process(each.pid):
            try:
                return container_files.nameservers(each.pid) or ()
            except InitError:
                continue
    return ()


def _without_visitors(all_processes: tuple[NetworkProcess, ...]) -> tuple[NetworkProcess, ...]:
    """The processes but for those in the sidecar's own container, such as a shell of kubectl exec."""
    sidecar = {name for each in all_processes if each.name in PROXIES for name in containers.of_process(each.pid)}
    return tuple(
        each for each in all_processes if each.name in PROXIES or not sidecar & containers.of_process(each.pid)
    )


def _mode_none(process: NetworkProcess) -> str:
    """That a process is told mode NONE; nothing else is read of its environment."""
    try:
        with open(f"/proc/{process.pid}/environ", "rb") as file:
            variables = file.read(LONGEST_ENVIRONMENT).split(b"\0")
    except OSError:
        return ""
    if MODE + b"NONE" in variables:
        return f"{process.name} (process {process.pid}) has {MODE.decode()}NONE"
    return ""


def node_signs(
    inode: int, devices: Iterable[str], rulesets: Iterable[Ruleset], *, sidecar: bool = False
) -> tuple[str, ...]:
    """What shows that the namespace is a node's own; nothing of a pod's.

    A pod with a sidecar may run Docker or kube-proxy inside: only the node's init is a sign then.
    """
    signs: list[str] = []
    if sidecar:
        devices, rulesets = (), ()
    names = sorted(NODE_DEVICES.intersection(devices))
    if names:
        signs.append(f"interfaces of a node: {', '.join(names)}")
    chains = {
        chain.name
        for ruleset in rulesets
        for table in ruleset.tables
        for chain in table.chains
        if chain.name.startswith(("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING"))
    }
    if chains:
        signs.append(f"kube-proxy's chains: {', '.join(sorted(chains))}")
    if _is_inits(inode):
        signs.append("process 1, the node's init, is in it")
    return tuple(signs)


def _is_inits(inode: int) -> bool:
    """Whether this is the namespace of the node's init; in a container process 1 is another program."""
    try:
        with open("/proc/1/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() in INIT and os.stat("/proc/1/ns/net").st_ino == inode
    except OSError:
        return False
