"""A pod for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.kit.pod import Pod
from istio_init.model.rules import IPV4


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod(IPV4) as instance:
        yield instance
