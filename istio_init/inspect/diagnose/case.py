"""What a diagnosis works with: what is known about a pod, and the causes that explain what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model.packet import LOOPBACKS
from istio_init.model.rules import IPV4, Ruleset
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.kernel.probe.facts import ForeignTable
    from istio_init.model.counters import Usage
    from istio_init.model.differences import Difference
    from istio_init.model.packet import Facts
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family, Network
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan
    from istio_init.simulate.path import PacketPath, Proxy

# The first bytes of an IPv4 address in IPv6's form.
MAPPED = bytes(10) + b"\xff\xff"
# Programs that are the sidecar.
PROXIES = frozenset({"envoy", "pilot-agent"})


class Resident(Record):
    """A process or container of the pod; an id is None where it is not known, the process id where there is none.

    `stopped` says that a signal or a debugger holds the process.
    """

    name: str
    uid: int | None
    gid: int | None
    pid: int | None = None
    stopped: bool = False

    @property
    def is_proxy(self) -> bool:
        """Whether it is the sidecar."""
        return self.name in {*PROXIES, "istio-proxy"}

    @property
    def text(self) -> str:
        """Its name and process id."""
        return f"{self.name} (process {self.pid})" if self.pid else f"container {self.name}"


class ServerSocket(Record):
    """A listening TCP socket: its address, its port, and its owner, which is None where that is not known.

    `address` is of either family, all zero for every address; with `v6only` that means every IPv6 address.
    `transparent` says whether it takes connections to any address, which TPROXY needs; None where that is not known.
    `waiting` are connections that nobody has accepted, of `most` that may wait.
    """

    address: bytes
    port: int
    owner: Resident | None = None
    v6only: bool = False
    transparent: bool | None = None
    waiting: int = 0
    most: int = 0

    def takes(self, address: bytes) -> bool:
        """Whether a connection to this address of the pod comes to it."""
        if any(self.address):
            own = self.address[-4:] if self.address.startswith(MAPPED) else self.address
            return own == address
        return len(self.address) == len(address) or (len(self.address) == 16 and not self.v6only)

    @property
    def is_local(self) -> bool:
        """Whether only the pod itself can reach it."""
        return self.address in LOOPBACKS.values() or (len(self.address) == 4 and self.address[0] == 127)


class OpenConnection(Record):
    """An established TCP connection: both ends, its owner, and whether connection tracking redirected it.

    `redirected` is None where connection tracking does not know it, `mark` is what it has as the connection's mark.
    """

    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    uid: int
    redirected: bool | None
    mark: int = 0
    owner: Resident | None = None


class SocketCaptureState(Record):
    """What the node holds of a pod that is captured by eBPF.

    `captured`: the map of captured pods has it; `inbound_attached`: its own program for inbound calls. `missing` are
    programs that are not attached at the node's cgroup. `options` are those of its entry, `counts` the node's counters,
    `differences` those from what was wanted.
    """

    captured: bool
    inbound_attached: bool
    missing: tuple[str, ...]
    options: Options | None
    counts: Mapping[str, int]
    differences: tuple[str, ...] = ()


class Situation(Record):
    """All that is known about the pod.

    `options` have their defaults; `source` says where they come from, `inferred` whether only the rules do.
    `rulesets` are those of all backends together, `chosen` those of the backend that has Istio's rules, `backends` the
    ones that have any (`dump` or `manifest` without a namespace). `differences` and `missing` are between the plan and
    what exists. `processes` is how many are in the namespace, None without one. `listening` (TCP) and `bound` (UDP) are
    ports, None where they are not known; `listeners` are TCP's sockets, as far as the kernel shows them;
    `nameservers` are those of the pod's resolv.conf, where that is known. `tracked` is how full connection tracking is,
    `strangers` are other programs' nftables tables. `node` are signs of a node's own namespace. `refusal` is why the
    pod's manifest, annotations or plugin capture nothing. `capture` is the node's part of capture by eBPF, the
    rules are then those that the programs follow. `hosts` are the addresses of names in the manifest's
    hostAliases. `uninjected`: the manifest has nothing of Istio's injection. `named_place` says
    that a place was named, else it is the caller's own namespace.
    """

    options: Options
    source: str
    inferred: bool
    plan: Plan
    rulesets: tuple[Ruleset, ...]
    chosen: tuple[Ruleset, ...]
    backends: tuple[str, ...]
    facts: Facts
    envoy: Proxy
    differences: tuple[tuple[Family, Difference], ...] = ()
    missing: tuple[RoutingEntry, ...] = ()
    interfaces: tuple[str, ...] = ()
    sysctls: Mapping[str, int] = {}
    residents: tuple[Resident, ...] = ()
    listening: frozenset[int] | None = None
    bound: frozenset[int] | None = None
    listeners: tuple[ServerSocket, ...] = ()
    connections: tuple[OpenConnection, ...] = ()
    processes: int | None = None
    tracked: Usage | None = None
    nameservers: tuple[Network, ...] = ()
    foreign_tables: tuple[ForeignTable, ...] = ()
    node: tuple[str, ...] = ()
    named_pod: bool = False
    named_place: bool = True
    host_network: bool = False
    refusal: str = ""
    mode_none: str = ""
    capture: SocketCaptureState | None = None
    hosts: Mapping[str, bytes] = {}
    uninjected: bool = False
    live: bool = False

    def ruleset(self, family: Family) -> Ruleset:
        """The rules of one family in all backends."""
        return next((each for each in self.rulesets if each.family == family), Ruleset(family, ()))

    @property
    def by_capture(self) -> bool:
        """Whether the pod is captured by eBPF, or is to be, and has no rules."""
        desired = self.options.capture_backend == "ebpf" and not self.backends
        return self.live and (desired or self.backends == ("ebpf",) or (self.capture is not None and not self.backends))

    @property
    def origin(self) -> str:
        """Where the options come from, as evidence names it."""
        if self.inferred:
            return "the node's maps" if self.by_capture else "the rules themselves"
        return self.source

    @property
    def proxies(self) -> tuple[Resident, ...]:
        """The sidecar's processes or containers."""
        return tuple(each for each in self.residents if each.is_proxy)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of the plan."""
        return tuple(each.family for each in self.plan.rulesets) or (IPV4,)


class Cause(Record):
    """Why calls are not as the options want them: a name, the cause in a sentence, and what a person needs.

    `verdict` is what is wrong, `path` a packet that shows it, `evidence` facts, `remedy` what to do.
    """

    name: str
    verdict: str
    cause: str
    evidence: tuple[str, ...] = ()
    remedy: tuple[str, ...] = ()
    path: PacketPath | None = None
