"""A damaged bundle ends the start with one line: marshal, given the same bytes, may crash the interpreter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.benchmark.installation import HOME, Variant, install

if TYPE_CHECKING:
    from collections.abc import Iterator

BUNDLE = "istio_init.bundle"
IMPORTER_BYTES = 12288


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("image")
    install(sys.executable, directory, Variant())
    return directory


def bundle_of(image: Path) -> Path:
    return image / HOME[1:] / BUNDLE


def start(image: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-ISXutf8", str(image / "istio-iptables"), "--dry-run", "-u", "1337"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(image: Path, why: str) -> None:
    done = start(image)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def damaged(image: Path) -> Iterator[Path]:
    """A bundle to damage; the one before comes back."""
    bundle = bundle_of(image)
    spare = bundle.with_suffix(".spare")
    shutil.copy(bundle, spare)
    yield bundle
    spare.rename(bundle)


def test_an_undamaged_one_starts(image: Path) -> None:
    done = start(image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("*nat")


@pytest.mark.parametrize("length", [0, 1, 7, 100, IMPORTER_BYTES - 1, IMPORTER_BYTES, IMPORTER_BYTES + 8, 40_000])
def test_a_truncated_one_is_refused(image: Path, damaged: Path, length: int) -> None:
    damaged.write_bytes(damaged.read_bytes()[:length])
    refused(image, "damaged")


@pytest.mark.parametrize("place", [0, 8, 200, IMPORTER_BYTES, IMPORTER_BYTES + 8, IMPORTER_BYTES + 16, 40_000])
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_another_byte_is_noticed(image: Path, damaged: Path, place: int, mask: int) -> None:
    content = bytearray(damaged.read_bytes())
    content[place] ^= mask
    damaged.write_bytes(content)
    refused(image, "damaged")


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"(", b"["])
def test_one_that_is_something_else_is_refused(image: Path, damaged: Path, fill: bytes) -> None:
    """A size of 2^64-1 asks for no memory."""
    damaged.write_bytes(damaged.read_bytes()[:IMPORTER_BYTES] + fill * 100_000)
    refused(image, "damaged")


def test_one_that_is_not_there_is_named(image: Path, damaged: Path) -> None:
    damaged.unlink()
    refused(image, f"{BUNDLE}: No such file or directory")
    shutil.copy(damaged.with_suffix(".spare"), damaged)
