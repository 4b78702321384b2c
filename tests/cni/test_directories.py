"""Where a node's networks and plugins are: named, said by containerd, or at one of the usual places."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_init.cni.node.directories import CONTAINERD, DEFAULT, USUAL, Directories, candidates, detect
from istio_init.errors import InitError

OURS = Directories("/srv/net.d", "/srv/bin")
VERSION_2 = '[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "/srv/net.d"\nbin_dir = "/srv/bin"\n'
VERSION_3 = "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/srv/net.d'\nbin_dirs = ['/srv/bin', '/opt']\n"


class Node:
    """A node's root below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, pair: Directories, *networks: str) -> Directories:
        """Make a pair of directories, with empty networks of these names; returns them as they are found."""
        result = Directories(f"{self.root}{pair.networks}", f"{self.root}{pair.programs}")
        for path in (result.networks, result.programs):
            Path(path).mkdir(parents=True, exist_ok=True)
        for name in networks:
            Path(result.networks, name).touch()
        return result

    def containerd(self, text: str) -> None:
        """Configure containerd."""
        path = Path(f"{self.root}{CONTAINERD}")
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def detect(self, networks: str = "", programs: str = "") -> Directories:
        """What is found there."""
        return detect(networks, programs, str(self.root))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_is_named_is_not_looked_for(node: Node) -> None:
    node.has(DEFAULT, "10-a.conflist")
    assert node.detect("/a", "/b") == Directories("/a", "/b")


@pytest.mark.parametrize("pair", USUAL, ids=lambda pair: pair.networks + pair.programs)
def test_each_usual_place(node: Node, pair: Directories) -> None:
    assert node.has(pair) == node.detect()


@pytest.mark.parametrize("text", [VERSION_2, VERSION_3])
def test_containerds_own_word_counts_first(node: Node, text: str) -> None:
    node.containerd(text)
    usual = node.has(DEFAULT)
    # What it says but is not there is not taken.
    assert node.detect() == usual
    exists = node.has(OURS)
    assert node.detect() == exists
    # Of two the one that pods get a network from.
    node.has(DEFAULT, "10-a.conflist")
    assert node.detect() == usual


@pytest.mark.parametrize("text", ["", "version = 2\n", "[plugins]\n", '[plugins."io.containerd.grpc.v1.cri"]\n'])
def test_a_containerd_that_does_not_say(node: Node, text: str) -> None:
    node.containerd(text)
    assert node.has(DEFAULT) == node.detect()


def test_a_configuration_of_containerds_that_is_broken(node: Node) -> None:
    node.containerd("[plugins")
    node.has(DEFAULT)
    with pytest.raises(InitError, match=r"config\.toml.*name the CNI directories instead"):
        node.detect()


def test_one_that_is_named_goes_with_its_own(node: Node) -> None:
    gke = USUAL[-1]
    node.has(DEFAULT)
    exists = node.has(gke)
    assert node.detect(programs=gke.programs) == exists
    # One that nobody knows goes with the usual other.
    assert node.detect(networks="/a") == Directories("/a", DEFAULT.programs)
    assert node.detect(programs="/b") == Directories(DEFAULT.networks, "/b")


def test_nothing_to_be_found(node: Node) -> None:
    with pytest.raises(InitError, match="--cni-net-dir and --cni-bin-dir"):
        node.detect()


def test_networks_in_a_runtimes_order(node: Node) -> None:
    names = ("20-b.conflist", "10-a.conf", "30-c.json", "00-hidden.bak", "05.txt", ".x.tmp")
    assert candidates(node.has(DEFAULT, *names).networks) == ["10-a.conf", "20-b.conflist", "30-c.json"]
