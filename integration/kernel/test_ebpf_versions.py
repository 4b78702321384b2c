"""Releases of capture by eBPF after and beside each other, other programs at the same hooks, and its removal."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.kernel.test_ebpf import CAPTURE, WITH_DNS
from integration.kit.ebpf_node import ADDRESS, ELSEWHERE, EbpfNode, another_program, enclosed, reached
from integration.kit.endpoints import awaited
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT
from istio_init.kernel.ebpf import installation as ebpf_installation
from istio_init.kernel.ebpf import layouts, pods, syscall
from istio_init.kernel.ebpf.installation import ALL_HOOKS, HOOKS, Installation


@pytest.fixture
def installation(node: EbpfNode) -> Iterator[Installation]:
    """A node without any installation, before and afterwards."""
    yield node.installation
    with node.installation.lock():
        for home in layouts.homes(node.installation.directory):
            layouts.remove(home)
    node.installation.close()
    assert (list(node.pins()), node.attached()) == ([], 0)


def with_address(namespace: Namespace) -> Namespace:
    namespace.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
    return namespace


@pytest.fixture
def newer(node: EbpfNode, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """What a release with another layout makes of the same node."""
    monkeypatch.setattr(ebpf_installation, "LAYOUT", "v2")
    instance = node.again()
    yield instance
    instance.close()


def test_the_first_add_of_another_release_replaces_programs_without_a_missed_connection(
    node: EbpfNode, installation: Installation, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.add(installation, with_address(namespace).path, WITH_DNS)
    cgroup = os.open(node.cgroup, os.O_RDONLY)
    before = {each: syscall.attached_programs(cgroup, kind) for each, (_, kind) in ALL_HOOKS.items()}
    stop, ends = threading.Event(), []

    def dial() -> None:
        while not stop.is_set():
            ends.append(reached(namespace))

    # No program is started while the thread dials: until its exec, a child would keep the thread's listener open.
    with Namespace() as other:
        with_address(other)
        thread = threading.Thread(target=dial)
        thread.start()
        for number in range(5):
            monkeypatch.setattr(ebpf_installation, "RELEASE", str(number))
            again = node.again()
            pods.add(again, other.path, CAPTURE)
            again.close()
        stop.set()
        thread.join()
    assert set(ends) == {ELSEWHERE}
    after = {each: syscall.attached_programs(cgroup, kind) for each, (_, kind) in ALL_HOOKS.items()}
    os.close(cgroup)
    for each, programs in after.items():
        assert len(programs) == 1
        assert programs != before[each]
    assert [each for each in os.listdir(installation.home) if each.startswith("release-")] == ["release-4"]


def test_two_layouts_each_have_their_pods(
    node: EbpfNode, installation: Installation, newer: Installation, namespace: Namespace
) -> None:
    """The one that was first stays until its last pod ends, removed by whichever release the plugin is by then."""
    old = pods.add(installation, with_address(namespace).path, CAPTURE)
    with Namespace() as second:
        new = pods.add(newer, with_address(second).path, WITH_DNS)
        assert (reached(namespace), reached(second)) == (ELSEWHERE, ELSEWHERE)
        assert node.attached() == len(HOOKS) + len(ALL_HOOKS)
        assert layouts.home_of(newer.home, old) == installation.home
        assert list(layouts.missing(installation.home, old)) == []
        assert layouts.home_of(newer.home, new) == ""
        assert pods.remove(newer, old)
        assert reached(namespace) is None
        assert reached(second) == ELSEWHERE
        assert layouts.homes(newer.directory) == (newer.home,)
        assert node.attached() == len(ALL_HOOKS)
        assert not pods.remove(newer, old)


def test_a_pod_of_another_layout_that_has_ended_is_collected(
    installation: Installation, newer: Installation, namespace: Namespace
) -> None:
    pods.add(newer, with_address(namespace).path, CAPTURE)
    with Namespace() as second:
        cookie = pods.add(installation, with_address(second).path, CAPTURE)
        assert pods.collect(newer) == ()
    awaited(lambda: pods.collect(newer) == (cookie,), "the kernel to end the namespace")
    assert layouts.homes(newer.directory) == (newer.home,)


def test_a_pod_that_is_added_again_moves_to_the_newer_layout(
    installation: Installation, newer: Installation, namespace: Namespace
) -> None:
    cookie = pods.add(installation, with_address(namespace).path, CAPTURE)
    assert pods.add(newer, namespace.path, CAPTURE) == cookie
    assert layouts.homes(newer.directory) == (newer.home,)
    assert reached(namespace) == ELSEWHERE


def test_programs_that_were_attached_before_run_after_the_capture(
    node: EbpfNode, installation: Installation, namespace: Namespace
) -> None:
    """From Linux 6.17 on."""
    with another_program(node) as other:
        pods.add(installation, with_address(namespace).path, CAPTURE)
        cgroup = os.open(node.cgroup, os.O_RDONLY)
        programs = syscall.attached_programs(cgroup, ALL_HOOKS["cgroup/connect4"][1])
        os.close(cgroup)
        release = tuple(map(int, os.uname().release.split(".")[:2]))
        assert len(programs) == 2
        assert programs.index(other) == (1 if release >= (6, 17) else 0)
        assert reached(namespace) == ELSEWHERE


def uninstall(node: EbpfNode, directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*enclosed(node), "istio-init", "cni", "uninstall", *flags]
    places = [f"--cni-net-dir={directory}", f"--cni-bin-dir={directory}"]
    return subprocess.run(
        [*command, *places], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_it_is_not_removed_from_under_pods(
    node: EbpfNode, installation: Installation, newer: Installation, namespace: Namespace, tmp_path: Path
) -> None:
    """`cni uninstall` removes every layout, once the last pod has ended or with --force."""
    pods.add(installation, with_address(namespace).path, CAPTURE)
    with Namespace() as second:
        pods.add(newer, with_address(second).path, CAPTURE)
        refused = uninstall(node, tmp_path)
        assert refused.returncode == 1
        assert "2 of its pods are captured by it" in refused.stderr
        assert (reached(namespace), reached(second)) == (ELSEWHERE, ELSEWHERE)
        forced = uninstall(node, tmp_path, "--force")
        assert forced.returncode == 0, forced.stderr
        assert forced.stderr.count("programs, maps and pins removed") == 2
        assert (reached(namespace), reached(second)) == (None, None)
        assert (list(node.pins()), node.attached()) == ([], 0)
    assert "nothing to remove" in uninstall(node, tmp_path).stderr
