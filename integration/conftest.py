"""What integration tests of several directories share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from integration.kit.ebpf_node import EbpfNode
from integration.kit.namespace import Namespace

# A job in the background, or nohup's, ignores these signals, and every run that is begun from there would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace, deleted after the test."""
    with Namespace() as fresh:
        yield fresh


@pytest.fixture(scope="module")
def node() -> Iterator[EbpfNode]:
    """A node for capture by eBPF inside this machine."""
    with EbpfNode() as ebpf_node:
        yield ebpf_node
