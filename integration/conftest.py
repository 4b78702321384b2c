"""The one fixture that every integration test shares."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from integration.kit.namespace import Namespace

# A job in the background, or nohup's, ignores these signals, and every run that is begun from there would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace, deleted after the test."""
    with Namespace() as fresh:
        yield fresh
