"""What the agent holds of capture by eBPF: lost pins are restored, removed ones stay away, ended pods are forgotten."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.kernel.test_ebpf import CAP_BPF, CAP_NET_ADMIN, CAPTURE, WITH_DNS
from integration.kit.capabilities import only
from integration.kit.ebpf_node import ADDRESS, ELSEWHERE, EbpfNode, enclosed, reached
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT
from istio_init.kernel.ebpf import links, pods, syscall
from istio_init.kernel.ebpf.holder import Holder, Look
from istio_init.kernel.ebpf.installation import DNS_HOOKS, HOOKS, MAPS, Installation, root_cgroup


@pytest.fixture
def installation(node: EbpfNode) -> Iterator[Installation]:
    yield node.installation
    with node.installation.lock():
        node.installation.uninstall()


@pytest.fixture
def holder(node: EbpfNode) -> Iterator[Holder]:
    instance = Holder(node.installation.directory, str(node.cgroup))
    yield instance
    instance.close()


@pytest.fixture
def namespace(namespace: Namespace) -> Namespace:
    namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
    return namespace


def remove_all(installation: Installation) -> None:
    shutil.rmtree(installation.home)


def remove_links(installation: Installation) -> None:
    for each in Path(installation.path("links", "")).iterdir():
        each.unlink()


def remove_pods(installation: Installation) -> None:
    for each in Path(installation.path("pods", "")).iterdir():
        each.unlink()


LOSSES: dict[str, tuple[Callable[[Installation], None], int]] = {
    "all": (remove_all, len(MAPS) + len(HOOKS) + 1),
    "links": (remove_links, len(HOOKS)),
    "pods": (remove_pods, 1),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_captured_meanwhile_and_pinned_again(
    installation: Installation, holder: Holder, namespace: Namespace, loss: str
) -> None:
    cookie = pods.add(installation, namespace.path, CAPTURE)
    assert holder.look() == Look()
    remove, count = LOSSES[loss]
    remove(installation)
    assert reached(namespace) == ELSEWHERE
    assert len(holder.look().restored) == count
    assert holder.look() == Look()
    holder.close()
    assert reached(namespace) == ELSEWHERE
    fresh = Installation(installation.cgroup, installation.directory)
    with fresh.lock():
        assert fresh.missing_links(dns=False) == []
        assert pods.describe(CAPTURE, cookie, pods.read(fresh, cookie)) == ()
    fresh.close()


def test_without_a_holder_what_loses_its_pins_is_gone(installation: Installation, namespace: Namespace) -> None:
    """The reason for all this; a new holder attaches at once what maps and pods still need."""
    pods.add(installation, namespace.path, CAPTURE)
    remove_links(installation)
    # The kernel lets go of a link after its last reference, on the side.
    for _ in range(100):
        if reached(namespace) is None:
            break
        time.sleep(0.05)
    assert reached(namespace) is None
    late = Holder(installation.directory, installation.cgroup)
    try:
        assert late.look().attached == tuple(HOOKS)
        assert reached(namespace) == ELSEWHERE
    finally:
        late.close()


def test_a_program_that_was_detached_is_attached_again(
    installation: Installation, holder: Holder, namespace: Namespace
) -> None:
    pods.add(installation, namespace.path, CAPTURE)
    holder.look()
    link = syscall.pinned(installation.path("links", "connect4"))
    syscall.detach_link(link)
    os.close(link)
    assert reached(namespace) is None
    assert not links.is_attached(installation.path("links", "connect4"))
    assert holder.look().attached == ("cgroup/connect4",)
    assert reached(namespace) == ELSEWHERE


def test_what_cannot_be_attached_is_named_with_the_reason(installation: Installation, namespace: Namespace) -> None:
    pods.add(installation, namespace.path, CAPTURE)
    Path(installation.path("links", "connect4")).unlink()
    blind = Holder(installation.directory, "/nowhere")
    try:
        actual = blind.look()
    finally:
        blind.close()
    assert (actual.attached, actual.missing) == ((), ("cgroup/connect4",))
    assert "No such file or directory" in actual.why


def test_what_is_removed_on_purpose_stays_removed(
    installation: Installation, holder: Holder, namespace: Namespace
) -> None:
    cookie = pods.add(installation, namespace.path, WITH_DNS)
    holder.look()
    pods.remove(installation, cookie)
    assert not installation.has_dns
    assert holder.look() == Look()
    assert installation.missing_links(dns=True) == list(DNS_HOOKS)
    assert os.listdir(installation.path("pods", "")) == []
    cgroup = os.open(installation.cgroup, os.O_RDONLY)
    assert syscall.attached_programs(cgroup, DNS_HOOKS["cgroup/sendmsg4"][1]) == ()
    with installation.lock():
        installation.uninstall()
    assert syscall.attached_programs(cgroup, HOOKS["cgroup/connect4"][1]) == ()
    os.close(cgroup)
    assert holder.look() == Look()
    assert os.listdir(installation.directory) == []


def test_a_pod_that_has_ended_is_forgotten(installation: Installation, holder: Holder) -> None:
    with Namespace() as namespace:
        namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        cookie = pods.add(installation, namespace.path, CAPTURE)
        assert holder.look().collected == ()
    for _ in range(200):
        if gone := holder.look().collected:
            break
        time.sleep(0.05)
    assert gone == (cookie,)
    assert os.listdir(installation.path("pods", "")) == []
    descriptors = len(os.listdir("/proc/self/fd"))
    holder.look()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_pods_of_a_replaced_installation_stay_captured(
    installation: Installation, holder: Holder, namespace: Namespace
) -> None:
    pods.add(installation, namespace.path, CAPTURE)
    holder.look()
    remove_all(installation)
    # An ADD comes before the next look.
    installation.close()
    with Namespace() as later:
        later.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        pods.add(installation, later.path, CAPTURE)
        assert holder.look() == Look()
        assert reached(namespace) == ELSEWHERE
        assert reached(later) == ELSEWHERE
        assert len(os.listdir(installation.path("pods", ""))) == 1


def test_what_others_put_there_is_left_alone(installation: Installation, holder: Holder, namespace: Namespace) -> None:
    pods.add(installation, namespace.path, CAPTURE)
    Path(installation.path("links", "other")).mkdir()
    link = syscall.pinned(installation.path("links", "connect4"))
    syscall.pin(link, installation.path("pods", "other"))
    os.close(link)
    assert holder.look() == Look()
    assert reached(namespace) == ELSEWHERE
    Path(installation.path("pods", "other")).unlink()
    Path(installation.path("links", "other")).rmdir()


def test_nothing_is_made_where_nothing_is_installed(tmp_path: Path) -> None:
    empty = Holder(str(tmp_path / "istio-init"))
    assert empty.look() == Look()
    assert list(tmp_path.iterdir()) == []


def test_the_agents_capabilities_suffice(installation: Installation, namespace: Namespace) -> None:
    pods.add(installation, namespace.path, CAPTURE)
    remove_links(installation)
    child = os.fork()
    if child == 0:
        try:
            only(CAP_BPF, CAP_NET_ADMIN)
            actual = Holder(installation.directory, installation.cgroup).look()
            os._exit(0 if actual.attached == tuple(HOOKS) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert reached(namespace) == ELSEWHERE


ROOT_CGROUP = "from istio_init.kernel.ebpf.installation import root_cgroup; print(root_cgroup())"


def test_a_containers_part_of_the_hierarchy_is_not_taken_for_its_root(node: EbpfNode) -> None:
    assert os.stat(root_cgroup()).st_ino == 1
    inside = [*enclosed(node), "env", "--unset=ISTIO_INIT_CGROUP", sys.executable, "-c", ROOT_CGROUP]
    done = subprocess.run(inside, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the root of the cgroup v2 hierarchy is not mounted here" in done.stderr
