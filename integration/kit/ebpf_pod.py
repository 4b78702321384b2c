"""The pod of pod.py, captured by eBPF: its processes listen once it is captured, and its callers call by themselves."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Self

from integration.kit.endpoints import (
    ROOT,
    Address,
    Arrival,
    User,
    answer,
    any_address,
    arrival,
    listener,
    set_transparent,
    used,
)
from integration.kit.namespace import Namespace
from integration.kit.pod import Pod, options_of
from istio_init.kernel.ebpf import pods
from istio_init.log import Log
from istio_init.planning.changes import Changes
from istio_init.planning.socket_capture import refuse
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from integration.kit.ebpf_node import EbpfNode
    from istio_init.model.rules import Family
    from istio_init.options.table import Options


class EbpfPod(Pod):
    """A pod of a node that captures it by eBPF: from the beginning with some `arguments`, or when they are applied.

    `apply` captures it, or changes how it is captured.
    """

    def __init__(self, family: Family, node: EbpfNode, arguments: str = "") -> None:
        super().__init__(family)
        self.node, self._arguments = node, arguments
        self._later: dict[str, tuple[int, User, bool]] | None = {}

    def __enter__(self) -> Self:
        super().__enter__()
        if self._arguments:
            self.apply(self._arguments)
        return self

    @property
    def cookie(self) -> int:
        """By what the node knows the pod."""
        return pods.cookie_of(self.namespace.path)

    def options(self, arguments: str) -> Options:
        """The options of a command line, for this pod."""
        chosen = options_of(f"--enable-ipv6 {arguments}")
        return chosen.replace(capture_backend="ebpf", network_namespace=self.namespace.path)

    def apply(self, arguments: str) -> Changes:
        """Capture the pod, whose processes listen from then on; no rule is made. InitError for refused options."""
        chosen = self.options(arguments)
        refuse(chosen)
        socket_capture.add(chosen, self.node.installation, Log("none"))
        later, self._later = self._later, None
        for name, (port, user, transparent) in (later or {}).items():
            self.listen(name, port, user, transparent=transparent)
        self._take_proof()
        return Changes((), (), (), "captured by eBPF")

    def _take_proof(self) -> None:
        """Take the connection by which ADD proves that the pod is captured, if the proxy listens."""
        ready, _, _ = select.select(list(self.listeners.values()), [], [], 0)
        for each in ready:
            each.accept()[0].close()

    def listen(self, name: str, port: int, user: User = ROOT, *, transparent: bool = False) -> None:
        """A listener of the pod's on all its addresses, once the pod is captured."""
        if self._later is None:
            address = (any_address(self.family), port)
            self.listeners[name] = listener(self.namespace, self.family, address, user, transparent=transparent)
        else:
            self._later[name] = port, user, transparent

    def dial(
        self,
        user: User,
        to: Address,
        source: Address | None = None,
        *,
        mark: int = 0,
        transparent: bool = False,
        at: Namespace | None = None,
    ) -> Arrival:
        """Connect as this user from the pod (or from another namespace)."""

        def call(connection: socket.socket) -> int:
            if transparent:
                set_transparent(connection)
            if mark:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source:
                connection.bind(source)
            connection.setblocking(False)
            return connection.connect_ex(to)

        connection, started = used(at or self.namespace, self.family, socket.SOCK_STREAM, user, call)
        return arrival(connection, started, to, self.listeners)

    def query(self, user: User, to: Address, port: int = 0) -> Arrival:
        """Send a datagram as this user from the pod, from a given port or any."""

        def call(connection: socket.socket) -> int:
            connection.bind((any_address(self.family), port))
            return connection.sendto(b"?", to)

        connection, _ = used(self.namespace, self.family, socket.SOCK_DGRAM, user, call)
        return answer(connection, to, self.receivers)
