"""The node's programs, built once from Go modules and kept outside the checkout: python -m integration.cluster.build.

hyperkube/main.go is one program for etcd, the control plane, kubelet, kube-proxy and kubectl: separate ones would link
client-go and the API types seven times. CoreDNS and helm are built beside it with the modules of that Kubernetes. The
cache's key is what they are made of: the Go files, go.mod, go.sum and Go's version. A cold build takes some 10 minutes
of processor time, 3 GB of disk for Go's own caches and 2.5 GB of memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SOURCES = Path(__file__).parent / "hyperkube"
PROGRAMS = ("hyperkube", "coredns", "helm")
COREDNS, HELM = "github.com/coredns/coredns", "helm.sh/helm/v3"
# The one field of CoreDNS 1.12 that client-go 0.34 no longer has.
GONE = "RetryOnError"
# Smaller, and the same from any directory.
BUILD = ("build", "-trimpath", "-buildvcs=false")


def programs() -> Path:
    """The directory with PROGRAMS, built where it is not there yet."""
    return built(f"{version()}-{key(SOURCES)}", PROGRAMS, build)


def built(name: str, files: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    """The directory of a name in the cache with these files; `build` makes it as `bin` below an empty directory.

    Of processes that want it at the same time, one builds, and the others wait.
    """
    home = cache() / name
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all((home / each).exists() for each in files):
            return home
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            build(Path(scratch))
            # In one step: a build that was killed leaves nothing that looks whole.
            shutil.rmtree(home, ignore_errors=True)
            (Path(scratch) / "bin").rename(home)
    return home


def cache() -> Path:
    """Where builds are kept: $XDG_CACHE_HOME/istio-init/cluster."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "istio-init" / "cluster"


def key(sources: Path) -> str:
    """What tells a build from another: Go's version, and a directory of Go files with go.mod and go.sum."""
    digest = hashlib.sha256(go("version").encode())
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(sources)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def version() -> str:
    """The version of Kubernetes."""
    return required(SOURCES, "k8s.io/kubernetes")


def required(sources: Path, module: str) -> str:
    """The version of a module that a directory's go.mod requires."""
    match = re.search(rf"{re.escape(module)} (v\S+)", (sources / "go.mod").read_text())
    assert match, f"go.mod names no version of {module}"
    return match[1]


def module_directory(module: str, version: str) -> Path:
    """A module's files, downloaded where they are not there yet; nothing may be written to them."""
    report = go("mod", "download", "-json", f"{module}@{version}", directory=Path(tempfile.gettempdir()))
    match = re.search(r'"Dir": "([^"]+)"', report)
    assert match, report
    return Path(match[1])


def build(directory: Path) -> None:
    """Build into `bin` below an empty directory."""
    tree = directory / "hyperkube"
    shutil.copytree(SOURCES, tree)
    _prepare_coredns(tree)
    minor = version().split(".")[1]
    versions = {"gitVersion": version(), "gitMajor": "1", "gitMinor": minor, "gitTreeState": "clean", "gitCommit": "0"}
    flags = [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in versions.items()
    ]
    # Without these `helm template` takes Kubernetes for 1.20, and refuses charts that ask for more.
    for package in ("chartutil", "lint/rules"):
        flags += [f"-X {HELM}/pkg/{package}.k8sVersionMajor=1", f"-X {HELM}/pkg/{package}.k8sVersionMinor={minor}"]
    output = directory / "bin"
    output.mkdir()
    command = [*BUILD, "-ldflags", f"-s -w {' '.join(flags)}"]
    go(*command, "-o", f"{output}/", ".", "./coredns", f"{HELM}/cmd/helm", directory=tree, CGO_ENABLED="0")


def _prepare_coredns(tree: Path) -> None:
    """Copy CoreDNS' module to where go.mod expects it, without the line that does not compile."""
    shutil.copytree(module_directory(COREDNS, required(tree, COREDNS)), tree / "coredns-src")
    for path in (tree / "coredns-src").rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)
    informer = tree / "coredns-src" / "plugin" / "kubernetes" / "object" / "informer.go"
    lines = informer.read_text().splitlines(keepends=True)
    informer.write_text("".join(line for line in lines if GONE not in line))


def go(*arguments: str, directory: Path | None = None, **environment: str) -> str:
    """What Go's command prints."""
    command = ["go", *arguments]
    if not shutil.which("go"):
        raise SystemExit(
            "go: not in PATH: the node's programs are built with Go 1.26 or newer; scripts/test installs it"
        )
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    sys.stdout.write(f"{programs()}\n")
