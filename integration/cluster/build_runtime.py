"""A container runtime that knows user namespaces, built once from Go modules: -m integration.cluster.build_runtime.

Debian 12's containerd 1.6 and runc 1.1 have no `hostUsers: false`. A cold build takes some 2 minutes of processor time;
runc needs gcc and libseccomp's headers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from integration.cluster.build import BUILD, built, go, key

SOURCES = Path(__file__).parent / "runtime"
MODULE = "github.com/containerd/containerd/v2"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")


def runtime() -> Path:
    """The directory with PROGRAMS, built where it is not there yet."""
    return built(f"runtime-{key(SOURCES)}", PROGRAMS, build)


def build(directory: Path) -> None:
    """Build into `bin` below an empty directory."""
    command = [*BUILD, "-ldflags", "-s -w", "-o", f"{directory / 'bin'}/"]
    packages = [f"{MODULE}/cmd/{name}" for name in PROGRAMS[:3]]
    tags = "-tags=no_btrfs,no_devmapper,no_zfs,no_tracing"
    go(*command, tags, *packages, directory=SOURCES / "containerd", CGO_ENABLED="0")
    go(*command, "-tags=seccomp", "github.com/opencontainers/runc", directory=SOURCES / "runc")


if __name__ == "__main__":
    sys.stdout.write(f"{runtime()}\n")
