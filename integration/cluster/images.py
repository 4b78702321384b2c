"""The images under test, and the base image for apps, made once for all nodes of a run."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from integration.containers import base as base_image
from integration.containers.conftest import BASE, IMAGE, build, copied_sources, state_of_daemons
from integration.containers.engine import Engine

CNI_IMAGE = "localhost/istio-init-cni:test"


@contextlib.contextmanager
def shared(run: str) -> Iterator[Path]:
    """The images as one archive. Of the processes of a run that want it, one makes it, and the last one removes it."""
    directory = Path("/var/tmp", f"istio-init-images-{run}")
    directory.mkdir(exist_ok=True)
    archive = directory / "images.tar"
    with (directory / "in-use").open("w") as in_use:
        fcntl.flock(in_use, fcntl.LOCK_SH)
        try:
            with (directory / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not archive.exists():
                    archive.write_bytes(make())
            yield archive
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)


def make() -> bytes:
    """Make an archive of all of them; the layers that they have in common are in it once."""
    with state_of_daemons() as directory:
        archive, sources = base_image.archive(directory), copied_sources(directory)
        with Engine(directory / "docker") as engine:
            engine.cli("import", str(archive), BASE)
            build(engine, sources, BASE, IMAGE)
            build(engine, sources, BASE, CNI_IMAGE, "--target=cni")
            return engine.cli("save", BASE, IMAGE, CNI_IMAGE)
