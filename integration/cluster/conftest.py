"""One node, and the images under test, for all cluster tests of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cluster.node import KubernetesNode
from integration.containers.conftest import Built, base, build, engine, image, sources, state
from integration.containers.engine import Engine

__all__ = ["base", "engine", "image", "sources", "state"]

CNI_IMAGE = "localhost/istio-init-cni:test"


# Seconds: the first test waits for two images, and on a new machine for the node's programs to be built.
TIMEOUT = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this directory the time that what they share takes to set up."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def cni_image(engine: Engine, image: Built, sources: Path, base: str) -> Built:
    """The image that installs the CNI plugin, built upon what the other left in the cache."""
    return build(engine, sources, base, CNI_IMAGE, "--target=cni")


@pytest.fixture(scope="session")
def node(engine: Engine, image: Built, cni_image: Built, base: str) -> Iterator[KubernetesNode]:
    """A node that has the images under test, the base image for apps, and a DNS server."""
    with KubernetesNode() as running:
        for tag in (image.tag, cni_image.tag, base):
            running.load(engine.cli("save", tag))
        running.start_dns()
        yield running


@pytest.fixture
def namespace(node: KubernetesNode, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the cluster for one test."""
    name = "".join(sign if sign.isalnum() else "-" for sign in request.node.name.lower())[:50].strip("-")
    with node.namespace(name) as result:
        yield result
