"""Capture by eBPF where the node's maps are full: the pod is refused and not captured, the others stay captured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.kernel.test_ebpf import CAPTURE
from integration.kit.ebpf_node import ADDRESS, ELSEWHERE, EbpfNode, reached
from integration.kit.namespace import Namespace
from istio_init.errors import KernelError
from istio_init.kernel.ebpf import installation as ebpf_installation
from istio_init.kernel.ebpf import pods
from istio_init.model.rules import PortRange


@pytest.fixture
def namespaces(node: EbpfNode) -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace() as one, Namespace() as other:
        for each in one, other:
            each.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        yield one, other
    with node.installation.lock():
        node.installation.uninstall()


def limit(monkeypatch: pytest.MonkeyPatch, name: str, entries: int) -> None:
    """Have the next installation's map be this small."""
    kind, key, value, _, flags = ebpf_installation.MAPS[name]
    monkeypatch.setitem(ebpf_installation.MAPS, name, (kind, key, value, entries, flags))


def test_one_pod_too_many(
    node: EbpfNode, namespaces: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, "pods", 1)
    one, other = namespaces
    cookie = pods.add(node.installation, one.path, CAPTURE)
    with pytest.raises(KernelError, match=r"captures as many pods as its map has room for \(1\)"):
        pods.add(node.installation, other.path, CAPTURE)
    assert (reached(one), reached(other)) == (ELSEWHERE, None)
    assert pods.cookies(node.installation) == (cookie,)


def test_more_ports_than_there_is_room_for(
    node: EbpfNode, namespaces: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod whose new options do not fit keeps those that it has."""
    limit(monkeypatch, "members", 12)
    one, other = namespaces
    pods.add(node.installation, one.path, CAPTURE)
    many = CAPTURE.replace(excluded_ports=tuple(PortRange(port, port) for port in range(1001, 1041, 4)))
    for each in other, one:
        with pytest.raises(KernelError, match=r"networks, ports and groups together as its map has room for \(12\)"):
            pods.add(node.installation, each.path, many)
    assert (reached(one), reached(other)) == (ELSEWHERE, None)
    with node.installation.lock():
        state = pods.read(node.installation, pods.cookie_of(one.path))
        assert pods.describe(CAPTURE, pods.cookie_of(one.path), state) == ()
