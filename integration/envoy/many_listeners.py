"""One Envoy with many listeners that depend on chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from integration.containers.envoy import ROOT_USER, Envoy
from integration.containers.envoy_config import Json
from integration.kit.namespace import Namespace

FIRST_PORT = 20000


@contextmanager
def running(seed: int, count: int, make: Callable[[random.Random, int], Json]) -> Iterator[Envoy]:
    """Envoy with so many listeners; `make` is given the chance of `seed` and a port."""
    chance = random.Random(seed)
    result = [make(chance, FIRST_PORT + number) for number in range(count)]

    def config(admin: object) -> Json:
        return {
            "admin": {"address": {"pipe": {"path": str(admin)}}},
            "static_resources": {"listeners": result},
        }

    with Namespace() as namespace, Envoy(namespace, ROOT_USER, config) as envoy:
        yield envoy
