"""One engine, one base image and one image under test for all container tests of a session."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.containers import base as base_image
from integration.containers.engine import ROOT, Engine

BASE = "localhost/istio-init-base:test"
IMAGE = "localhost/istio-init:test"
EPOCH = 1_700_000_000

# Where the daemons and their plugins keep more, whatever they are told; what was not there before goes, too.
NOT_CONFIGURABLE = tuple(
    map(Path, ("/run/containerd", "/run/runc", "/opt/containerd", "/var/lib/cni", "/var/lib/containers"))
)


class Built(NamedTuple):
    """The image under test, and what scripts/image said of it: bytes, and bytes compressed."""

    tag: str
    size: int
    compressed: int


@contextlib.contextmanager
def state_of_daemons() -> Iterator[Path]:
    """A directory on a real disk for daemons to keep their state in, with what they keep elsewhere gone at its end."""
    new = [path for path in NOT_CONFIGURABLE if not path.exists()]
    with tempfile.TemporaryDirectory(prefix="istio-init-", dir="/var/tmp") as directory:
        yield Path(directory)
    for path in new:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def state() -> Iterator[Path]:
    """A directory for daemons, until the end of the session."""
    with state_of_daemons() as directory:
        yield directory


@pytest.fixture(scope="session")
def engine(state: Path) -> Iterator[Engine]:
    """A Docker Engine with no image."""
    with Engine(state / "docker") as running:
        yield running


@pytest.fixture(scope="session")
def base(engine: Engine, state: Path) -> str:
    """A minimal Debian with Python: the image is built on it, and apps and proxies run in it."""
    engine.cli("import", str(base_image.archive(state)), BASE)
    return BASE


@pytest.fixture(scope="session")
def sources(state: Path) -> Path:
    """A copy of what the image is made of, so that it stays the same while somebody works on it."""
    return copied_sources(state)


def copied_sources(directory: Path) -> Path:
    """A copy of what the image is made of, below a directory."""
    copy = directory / "sources"
    for name in ("istio_init", "image", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Dockerfile", ".dockerignore", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def image(engine: Engine, sources: Path, base: str) -> Built:
    """The image, built by scripts/image as a user builds it."""
    return build(engine, sources, base, IMAGE)


def build(engine: Engine, tree: Path, base: str, tag: str, *options: str) -> Built:
    """Build the image with scripts/image from a source tree."""
    command = ["scripts/image", tag, "--quiet", "--network=host", f"--build-arg=BASE={base}", *options]
    environment = engine.environment | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    assert words[0] == f"{tag}:", done.stdout
    return Built(tag, int(words[1]), int(words[3]))
