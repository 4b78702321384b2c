"""Capture by eBPF when something is missing or full: nothing is sent past the proxy, and no destination is wrong."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.kit.ebpf_node import EbpfNode
from integration.kit.ebpf_pod import EbpfPod
from integration.kit.endpoints import (
    FAMILY_NUMBERS,
    PATIENCE,
    ROOT,
    User,
    any_address,
    awaited,
    original_destination,
    used,
)
from integration.kit.pod import APP
from integration.traffic.test_traffic import ALL
from istio_init.kernel.ebpf import installation as ebpf_installation
from istio_init.kernel.ebpf import pods, syscall
from istio_init.log import Log
from istio_init.model.rules import FAMILIES, IPV4
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from integration.kit.endpoints import Address
    from integration.kit.namespace import Namespace
    from istio_init.model.rules import Family

BOTH_FAMILIES = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def pod(node: EbpfNode, family: Family) -> Iterator[EbpfPod]:
    """A pod with an app, and a peer with a server; its proxy is each test's."""
    with EbpfPod(family, node) as fresh:
        fresh.listen("app", 8080)
        fresh.listen_at_peer("peer", 80)
        yield fresh


def counted(pod: EbpfPod, name: str) -> int:
    return pods.counts(pod.node.installation)[name]


def handed_over(pod: EbpfPod) -> int:
    """How many destinations are on their way from a caller to the proxy."""
    return sum(1 for _ in syscall.keys_after(pod.node.installation.map("handover"), bytes(48)))


def started(pod: EbpfPod, to: Address, user: User = APP, at: Namespace | None = None) -> tuple[socket.socket, int]:
    """A socket that a user has called connect(2) with and does not wait, and what that came to."""

    def call(client: socket.socket) -> int:
        client.setblocking(False)
        return client.connect_ex(to)

    return used(at or pod.namespace, pod.family, socket.SOCK_STREAM, user, call)


def dialling(pod: EbpfPod, to: Address, user: User = APP, at: Namespace | None = None) -> socket.socket:
    """A connection that has been begun."""
    client, code = started(pod, to, user, at)
    assert code in {0, errno.EINPROGRESS}, errno.errorcode[code]
    return client


def shared_listener(pod: EbpfPod, port: int, backlog: int = 128) -> socket.socket:
    """One of the proxy's listeners that share a port, as Envoy's workers do."""
    sock = pod.namespace.inside(lambda: socket.socket(FAMILY_NUMBERS[pod.family]))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((any_address(pod.family), port))
    sock.listen(backlog)
    sock.settimeout(PATIENCE)
    return sock


@BOTH_FAMILIES
def test_without_a_proxy_both_ways_are_refused_at_once(pod: EbpfPod) -> None:
    pod.apply(ALL)
    begin = time.monotonic()
    assert pod.dial(APP, (pod.addresses.peer, 80)).at == "refused"
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "refused"
    assert time.monotonic() - begin < PATIENCE / 2


@BOTH_FAMILIES
def test_a_proxy_that_accepts_nothing_is_waited_for(pod: EbpfPod) -> None:
    """As with REDIRECT; what it accepts later has the right destination, and nothing reaches the app or the peer."""
    pod.apply(ALL)
    lost, handed = counted(pod, "lost"), handed_over(pod)
    with shared_listener(pod, 15001, 60) as outbound, shared_listener(pod, 15006, 4) as inbound:
        goals = [(pod.addresses.outer, 1000 + number) for number in range(50)]
        with contextlib.ExitStack() as stack:
            clients = {stack.enter_context(dialling(pod, goal)).getsockname(): goal for goal in goals}
            for _ in range(8):
                stack.enter_context(dialling(pod, (pod.addresses.pod, 8080), ROOT, pod.peer))
            assert not select.select([pod.listeners["app"], pod.listeners["peer"]], [], [], 0.2)[0]
            for _ in goals:
                accepted, source = outbound.accept()
                with accepted:
                    assert original_destination(accepted) == clients[source]
            accepted, _ = inbound.accept()
            with accepted:
                assert original_destination(accepted) == (pod.addresses.pod, 8080)
    assert counted(pod, "lost") == lost
    assert handed_over(pod) == handed


@BOTH_FAMILIES
def test_without_memory_for_the_destination_the_call_is_refused(pod: EbpfPod) -> None:
    pod.listen("outbound", 15001)
    pod.apply(ALL)
    refused = counted(pod, "no_room")
    (limit,) = pod.namespace.run("cat", "/proc/sys/net/core/optmem_max").split()
    for size in ("0", "200"):
        pod.namespace.run("sysctl", "-q", "-w", f"net.core.optmem_max={size}")
        client, code = started(pod, (pod.addresses.peer, 80))
        client.close()
        assert errno.errorcode[code] == "EPERM"
    assert counted(pod, "no_room") == refused + 2
    pod.namespace.run("sysctl", "-q", "-w", f"net.core.optmem_max={limit}")
    assert pod.dial(APP, (pod.addresses.peer, 80)).at == "outbound"


def test_where_destinations_get_lost_none_is_wrong(node: EbpfNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash between the two ends has 64 places, and more connections than that wait for the proxy."""
    with node.installation.lock():
        node.installation.uninstall()
    kind, key, value, _, flags = ebpf_installation.MAPS["handover"]
    monkeypatch.setitem(ebpf_installation.MAPS, "handover", (kind, key, value, 64, flags))
    with EbpfPod(IPV4, node) as pod, contextlib.ExitStack() as stack:
        pod.apply(ALL)
        outbound = stack.enter_context(shared_listener(pod, 15001, 50))
        goals = [(pod.addresses.outer, 1000 + number) for number in range(140)]
        clients = {stack.enter_context(dialling(pod, goal)).getsockname(): goal for goal in goals}
        right = unknown = 0
        assert handed_over(pod) <= 64 < len(goals) - 51
        # A SYN that found no room is sent again after a second.
        while right + unknown < len(goals):
            accepted, source = outbound.accept()
            with accepted:
                try:
                    assert original_destination(accepted) == clients[source]
                    right += 1
                except FileNotFoundError:
                    unknown += 1
        assert counted(pod, "lost") == unknown
        assert right > unknown
    with node.installation.lock():
        node.installation.uninstall()


@BOTH_FAMILIES
def test_the_proxys_listeners_come_and_go(pod: EbpfPod) -> None:
    """Envoy's hot restart: at any time some of the listeners that share a port are there."""
    pod.apply(ALL)
    members = [(shared_listener(pod, 15001), shared_listener(pod, 15006)) for _ in range(3)]
    for number in range(24):
        members.append((shared_listener(pod, 15001), shared_listener(pod, 15006)))
        for each in members.pop(number % 3):
            each.close()
        for kind, user, to, at in (
            (0, APP, (pod.addresses.peer, 80), pod.namespace),
            (1, ROOT, (pod.addresses.pod, 8080), pod.peer),
        ):
            with dialling(pod, to, user, at):
                ready, _, _ = select.select([pair[kind] for pair in members], [], [], PATIENCE)
                accepted, _ = ready[0].accept()
                with accepted:
                    assert original_destination(accepted) == to
    for pair in members:
        for each in pair:
            each.close()
    assert pod.dial(APP, (pod.addresses.peer, 80)).at == "refused"


@BOTH_FAMILIES
def test_a_callers_port_that_is_used_again_at_once_is_captured_each_time(pod: EbpfPod) -> None:
    pod.apply(ALL)
    inbound = shared_listener(pod, 15006)
    to = (pod.addresses.pod, 8080)
    with inbound:
        for _ in range(300):
            client = pod.client(ROOT, (pod.addresses.outer, 40123), at=pod.peer)
            with client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.connect(to)
                accepted, source = inbound.accept()
                with accepted:
                    assert (source[:2], original_destination(accepted)) == ((pod.addresses.outer, 40123), to)


@BOTH_FAMILIES
def test_what_root_of_the_node_removes_is_named_and_comes_back_with_the_next_add(pod: EbpfPod) -> None:
    pod.listen("outbound", 15001)
    pod.listen("inbound", 15006)
    pod.apply(ALL)
    options, installation = pod.options(ALL), pod.node.installation
    assert socket_capture.differences(options, installation, Log("none")) == ()
    for pin in Path(installation.path("links", "")).iterdir():
        pin.unlink()
    # The kernel lets go of a link after its last reference.
    awaited(lambda: pod.dial(APP, (pod.addresses.peer, 80)).at == "peer", "the programs to go")
    arrival = pod.dial_in((pod.addresses.pod, 8080))
    assert (arrival.at, arrival.original) == ("inbound", None)
    [pin] = [each for each in Path(installation.path("pods", "")).iterdir() if each.name == str(pod.cookie)]
    pin.unlink()
    awaited(lambda: pod.dial_in((pod.addresses.pod, 8080)).at == "app", "sk_lookup to go")
    differences = socket_capture.differences(options, installation, Log("none"))
    assert [each for each in differences if "cgroup/connect4 is not attached" in each]
    assert [each for each in differences if "sk_lookup is not attached" in each]
    pod.apply(ALL)
    assert socket_capture.differences(options, installation, Log("none")) == ()
    assert pod.dial(APP, (pod.addresses.peer, 80)).at == "outbound"
    assert pod.dial_in((pod.addresses.pod, 8080)).at == "inbound"
