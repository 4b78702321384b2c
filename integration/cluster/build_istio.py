"""Istio's programs and charts, built once from its Go module: python -m integration.cluster.build_istio.

istio/main.go is one program for the control plane, the proxy's agent and the CNI plugin. Charts and the proxy's
bootstrap are files of the same module. A cold build takes some 5 minutes of processor time.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from integration.cluster.build import BUILD, built, go, key, module_directory, required

SOURCES = Path(__file__).parent / "istio"
MODULE = "istio.io/istio"
PROGRAM, CHARTS, BOOTSTRAP = "istio", "charts", "envoy_bootstrap.json"


def istio() -> Path:
    """The directory with PROGRAM, CHARTS and BOOTSTRAP, built where it is not there yet."""
    return built(f"istio-{key(SOURCES)}", (PROGRAM, CHARTS, BOOTSTRAP), build)


def build(directory: Path) -> None:
    """Build into `bin` below an empty directory."""
    output = directory / "bin"
    command = [*BUILD, "-ldflags", "-s -w", "-o", str(output / PROGRAM), "."]
    go(*command, directory=SOURCES, CGO_ENABLED="0")
    module = module_directory(MODULE, required(SOURCES, MODULE))
    shutil.copytree(module / "manifests" / "charts", output / CHARTS, copy_function=shutil.copyfile)
    for path in (output / CHARTS).rglob("*/"):
        path.chmod(0o755)
    shutil.copyfile(module / "tools" / "packaging" / "common" / BOOTSTRAP, output / BOOTSTRAP)


if __name__ == "__main__":
    sys.stdout.write(f"{istio()}\n")
