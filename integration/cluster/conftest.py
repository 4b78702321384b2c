"""One node, with the images under test, for all cluster tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cluster.images import shared
from integration.cluster.node import KubernetesNode

# Seconds: the first test waits for two images, and on a new machine for the node's programs to be built.
TIMEOUT = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this directory the time that what they share takes to set up."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def images(testrun_uid: str) -> Iterator[Path]:
    """An archive of the images under test and the base image for apps, the same for all workers of a run."""
    with shared(testrun_uid) as archive:
        yield archive


@pytest.fixture(scope="session")
def node(images: Path) -> Iterator[KubernetesNode]:
    """A node that has the images, and a DNS server."""
    with KubernetesNode() as running:
        running.load(images.read_bytes())
        running.start_dns()
        yield running


@pytest.fixture
def namespace(node: KubernetesNode, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the cluster for one test."""
    name = "".join(sign if sign.isalnum() else "-" for sign in request.node.name.lower())[:50].strip("-")
    with node.namespace(name) as result:
        yield result
