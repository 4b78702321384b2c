"""Capture by eBPF on this kernel: what a node and a pod have of it, and what is left when something ends early."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from integration.kit.capabilities import only
from integration.kit.ebpf_node import ADDRESS, ELSEWHERE, EbpfNode, reached
from integration.kit.namespace import Foreign, Namespace
from istio_init.errors import KernelError
from istio_init.kernel.ebpf import pods, syscall
from istio_init.kernel.ebpf.installation import ALL_HOOKS, DNS_HOOKS, HOOKS, LAYOUT, MAPS, Installation
from istio_init.kernel.ebpf.programs import RELEASE
from istio_init.kernel.ebpf.user_ids import translated
from istio_init.model.rules import Network, PortRange
from istio_init.model.socket_capture import SocketCapture

# <linux/capability.h>
CAP_NET_ADMIN, CAP_BPF = 12, 39
CAPTURE = SocketCapture(
    (Network(socket.inet_aton(ADDRESS), 32),), inbound="all", inbound_ports=(PortRange(15090, 15090),), outbound="all"
)
OTHER = CAPTURE.replace(excluded_ports=(PortRange(4000, 4003), PortRange(9000, 9000)))
WITH_DNS = CAPTURE.replace(dns="all")


@pytest.fixture
def installation(node: EbpfNode) -> Iterator[Installation]:
    """A node without any installation, before and afterwards."""
    yield node.installation
    with node.installation.lock():
        node.installation.uninstall()
    assert list(node.pins()) == []


@pytest.fixture
def namespace(namespace: Namespace) -> Namespace:
    namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
    return namespace


def left(installation: Installation) -> tuple[list[int], int]:
    """The pods that have an entry, and how many members there are in all."""
    first = bytes(syscall.Buffer(bytes(8)))
    entries = [int.from_bytes(each, "little") for each in syscall.keys_after(installation.map("pods"), first)]
    return entries, sum(1 for _ in syscall.keys_after(installation.map("members"), bytes(32)))


def test_a_connection_comes_to_the_proxy_with_its_destination(installation: Installation, namespace: Namespace) -> None:
    assert reached(namespace) is None
    cookie = pods.add(installation, namespace.path, CAPTURE)
    assert reached(namespace) == ELSEWHERE
    assert pods.remove(installation, cookie)
    assert reached(namespace) is None
    assert left(installation) == ([], 0)
    assert not pods.remove(installation, cookie)


def test_what_is_pinned(node: EbpfNode, installation: Installation, namespace: Namespace) -> None:
    cookie = pods.add(installation, namespace.path, CAPTURE)
    parts = ["links", *[f"links/{each.rpartition('/')[2]}" for each in HOOKS]]
    parts += ["maps", *[f"maps/{each}" for each in MAPS], "pods", f"pods/{cookie}", f"release-{RELEASE}"]
    assert sorted(node.pins()) == sorted([LAYOUT, *[f"{LAYOUT}/{each}" for each in parts]])


def test_adding_again_changes_the_options_and_leaves_nothing_stale(
    installation: Installation, namespace: Namespace
) -> None:
    cookie = pods.add(installation, namespace.path, OTHER)
    assert reached(namespace, (ELSEWHERE[0], 4002)) is None
    assert pods.add(installation, namespace.path, CAPTURE) == cookie
    assert reached(namespace, (ELSEWHERE[0], 4002)) == (ELSEWHERE[0], 4002)
    with installation.lock():
        assert pods.read(installation, cookie).members == frozenset(pods.keys(cookie, CAPTURE))


DAMAGE: dict[str, tuple[Callable[[Installation, int], object], str]] = {
    "sk_lookup": (lambda held, cookie: os.unlink(held.path("pods", str(cookie))), "sk_lookup is not attached"),
    "entry": (lambda held, cookie: syscall.delete(held.map("pods"), cookie.to_bytes(8, "little")), "map of captured"),
    "member": (
        lambda held, cookie: syscall.delete(held.map("members"), pods.keys(cookie, OTHER)[1]),
        "1 ports, networks, groups or addresses of the request are missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_missing_is_named(installation: Installation, namespace: Namespace, damage: str) -> None:
    cookie = pods.add(installation, namespace.path, OTHER)
    do, named = DAMAGE[damage]
    with installation.lock():
        assert pods.describe(OTHER, cookie, pods.read(installation, cookie)) == ()
        do(installation, cookie)
        [actual] = pods.describe(OTHER, cookie, pods.read(installation, cookie))
    assert named in actual
    # The next ADD mends it.
    pods.add(installation, namespace.path, OTHER)
    with installation.lock():
        assert pods.describe(OTHER, cookie, pods.read(installation, cookie)) == ()


def test_other_options_are_a_difference(installation: Installation, namespace: Namespace) -> None:
    cookie = pods.add(installation, namespace.path, CAPTURE)
    with installation.lock():
        contents = pods.describe(OTHER, cookie, pods.read(installation, cookie))
    assert contents == (
        "the pod's options differ from the requested ones",
        "2 ports, networks, groups or addresses of the request are missing",
    )


def test_datagrams_are_looked_at_only_while_a_pod_captures_dns(node: EbpfNode, installation: Installation) -> None:
    with Namespace() as plain, Namespace() as asking:
        for each in (plain, asking):
            each.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        pods.add(installation, plain.path, CAPTURE)
        assert not installation.has_dns
        cookie = pods.add(installation, asking.path, WITH_DNS)
        assert installation.missing_links(dns=True) == []
        pods.remove(installation, cookie)
        assert not installation.has_dns
        assert installation.missing_links(dns=True) == list(DNS_HOOKS)


def test_a_namespace_that_is_gone_is_collected(installation: Installation) -> None:
    with Namespace() as namespace:
        namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        cookie = pods.add(installation, namespace.path, OTHER)
        assert pods.collect(installation) == ()
    # The kernel ends a namespace some time after its last user.
    for _ in range(200):
        if gone := pods.collect(installation):
            break
        time.sleep(0.05)
    assert gone == (cookie,)
    assert left(installation) == ([], 0)


def adding(node: EbpfNode, namespace: Namespace, capture: SocketCapture) -> int:
    """The pid of a child that adds a pod and ends."""
    child = os.fork()
    if child == 0:
        try:
            pods.add(node.again(), namespace.path, capture)
        finally:
            os._exit(0)
    return child


def test_killed_at_any_moment_all_is_consistent(node: EbpfNode, installation: Installation) -> None:
    chance = random.Random(7)
    with Namespace() as namespace:
        namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        cookie = pods.cookie_of(namespace.path)
        for number in range(60):
            child = adding(node, namespace, (CAPTURE, OTHER)[number % 2])
            time.sleep(chance.uniform(0, 0.04 if number % 3 == 0 else 0.006))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            fresh = node.again()
            with fresh.lock():
                if not fresh.installed:
                    continue
                contents = pods.read(fresh, cookie)
                if contents.value:
                    assert contents.inbound_attached
                    assert set(pods.keys(cookie, CAPTURE)) <= contents.members
            fresh.close()
            if number % 5 == 0:
                with node.again().lock():
                    node.again().uninstall()
        pods.add(installation, namespace.path, CAPTURE)
        assert reached(namespace) == ELSEWHERE
        assert {each.split("/")[0] for each in node.pins()} == {LAYOUT}


def test_twelve_at_once_on_a_bare_node(node: EbpfNode, installation: Installation) -> None:
    namespaces = [Namespace() for _ in range(12)]
    try:
        for each in namespaces:
            each.__enter__()
            each.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        children = [adding(node, each, CAPTURE) for each in namespaces]
        for child in children:
            os.waitpid(child, 0)
        assert [reached(each) for each in namespaces] == [ELSEWHERE] * 12
        assert len(left(installation)[0]) == 12
    finally:
        for each in namespaces:
            each.__exit__(None, None, None)


def test_no_connection_is_missed_while_programs_are_replaced(installation: Installation, namespace: Namespace) -> None:
    pods.add(installation, namespace.path, CAPTURE)
    stop, actual = threading.Event(), []

    def dial() -> None:
        while not stop.is_set():
            actual.append(reached(namespace))

    thread = threading.Thread(target=dial)
    thread.start()
    for _ in range(20):
        with installation.lock():
            installation.upgrade()
    stop.set()
    thread.join()
    assert actual
    assert set(actual) == {ELSEWHERE}


def test_ids_of_a_user_namespace_are_translated() -> None:
    with Foreign() as foreign:
        desired = CAPTURE.replace(uids=(0, 1337), gids=(5,), groups=(7,))
        actual = translated(foreign.path, desired)
        first = Foreign.FIRST
        assert (actual.uids, actual.gids, actual.groups) == ((first, first + 1337), (first + 5,), (first + 7,))
        with pytest.raises(KernelError, match="--proxy-uid: 70000: not mapped in the pod's user namespace"):
            translated(foreign.path, CAPTURE.replace(uids=(70_000,)))


def test_two_capabilities_suffice_to_load_and_attach(
    node: EbpfNode, installation: Installation, namespace: Namespace
) -> None:
    with installation.lock():
        pass  # root makes the directory

    def load() -> None:
        only(CAP_NET_ADMIN, CAP_BPF)
        held = node.again()
        with held.lock():
            held.install(dns=True)

    namespace.forked(load)
    assert installation.missing_links(dns=True) == []


def test_without_the_capability_nothing_is_left(
    node: EbpfNode, installation: Installation, namespace: Namespace
) -> None:
    with installation.lock():
        pass

    def load() -> str:
        only(CAP_NET_ADMIN)
        try:
            with node.again().lock():
                node.again().install(dns=False)
        except KernelError as error:
            return str(error)
        return "installed"

    assert "the capabilities BPF and NET_ADMIN" in namespace.forked(load)
    assert list(node.pins()) == []


def test_a_cgroup_that_the_pod_is_not_in_is_noticed(node: EbpfNode, installation: Installation) -> None:
    with Namespace() as namespace:
        namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        empty = node.cgroup / "empty"
        empty.mkdir()
        try:
            wrong = Installation(str(empty), installation.directory)
            with pytest.raises(KernelError, match=r"was not captured .*: is the cgroup .* the root of"):
                pods.add(wrong, namespace.path, CAPTURE)
            assert left(wrong) == ([], 0)
            wrong.close()
        finally:
            with installation.lock():
                installation.uninstall()
            empty.rmdir()


def test_every_hook_is_attached_once(installation: Installation, namespace: Namespace) -> None:
    for _ in range(3):
        pods.add(installation, namespace.path, WITH_DNS)
    cgroup = os.open(installation.cgroup, os.O_RDONLY)
    try:
        for _, attach_type in ALL_HOOKS.values():
            assert len(syscall.attached_programs(cgroup, attach_type)) == 1
    finally:
        os.close(cgroup)
