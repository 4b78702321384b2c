"""The node as tests use it: started once, kubectl and helm in it, images loaded without a registry."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from integration.cluster.archive import image_archive
from integration.cluster.build import cache, programs
from integration.containers.engine import tool

HERE = Path(__file__).parent
SCRIPT = HERE / "node.sh"
PAUSE, COREDNS = "localhost/pause:1", "localhost/coredns:1"
PATIENCE = 120.0  # seconds for a pod to get where it should be, on a busy machine


class KubernetesNode:
    """One node with its control plane, from `with` to its end; nothing of it is left then.

    `runtime` is a directory with another containerd and runc than the distribution's.
    """

    def __init__(self, runtime: Path | None = None) -> None:
        self._path = f"{runtime}:{os.environ['PATH']}" if runtime else os.environ["PATH"]

    def __enter__(self) -> Self:
        self._programs = programs()
        # On a disk, and not below the directories that the node has overlays on.
        cache().mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="node-", dir=cache()))
        (self.directory / "pause.tar").write_bytes(
            image_archive(PAUSE, ("/catatonit", "-P"), {"catatonit": Path(tool("catatonit"))})
        )
        try:
            self._script("up")
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._script("down")
        shutil.rmtree(self.directory)

    def _script(self, *arguments: str) -> None:
        done = subprocess.run([SCRIPT, *arguments], env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}: {done.stderr}"

    @property
    def _environment(self) -> dict[str, str]:
        directories = {"NODE_DIR": str(self.directory), "PROGRAMS": str(self._programs), "PATH": self._path}
        return {**os.environ, **directories}

    def restart(self, daemon: str) -> None:
        """End containerd or kubelet as a crash would, and start it again. Pods run on."""
        self._script("restart", daemon)

    def reboot(self) -> None:
        """Stop the node and all that runs on it, and start it again with what is on its disk."""
        self._script("down")
        self._script("up")

    def completed(self, *command: str, text: str | bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """A command in the node's namespaces, whatever its exit status is."""
        data = text.encode() if isinstance(text, str) else text
        return subprocess.run(
            [SCRIPT, "exec", *command], env=self._environment, input=data, capture_output=True, check=False
        )

    def run(self, *command: str, text: str | bytes | None = None) -> str:
        """The standard output of a command in the node's namespaces; AssertionError where it fails."""
        done = self.completed(*command, text=text)
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode()}"
        return done.stdout.decode()

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """What kubectl prints."""
        return self.run("kubectl", *arguments, text=text)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as the API has it."""
        document: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return document

    def apply(self, text: str, namespace: str = "default") -> None:
        """Have the API server take these objects."""
        self.kubectl("apply", "--namespace", namespace, "--filename=-", text=text)

    def load(self, archive: bytes) -> None:
        """Give the node an image, so that none has to be pulled."""
        self.run("ctr", "-n", "k8s.io", "images", "import", "-", text=archive)

    @contextlib.contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace of the cluster, for one test, without the pods that another of that name had."""
        created = ("kubectl", "create", "namespace", name)
        self.until(lambda: self.completed(*created).returncode == 0, f"the namespace {name}")
        self.until(lambda: self.completed("kubectl", "-n", name, "get", "serviceaccount", "default").returncode == 0)
        try:
            yield name
        finally:
            # Its end takes Kubernetes 5 seconds, that of its pods does not; in a namespace that ends none is created.
            self.kubectl("delete", "namespace", name, "--wait=false")
            self.kubectl("-n", name, "delete", "pods", "--all", "--wait=true", "--timeout=90s", "--grace-period=1")

    def until(self, condition: Callable[[], bool], what: str = "") -> None:
        """Return once a condition holds; AssertionError after PATIENCE."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain{what and f' for {what}'}"
            time.sleep(0.2)

    def wait_for_pod(self, name: str, namespace: str, condition: str = "Ready") -> None:
        """Wait until a pod has a condition; AssertionError, with what the API tells of it, where it does not get it."""
        self.wait_for_pods([name], namespace, condition)

    def wait_for_pods(self, names: list[str], namespace: str, condition: str = "Ready") -> None:
        """Wait for each of these pods as for one."""
        pods = [f"pod/{name}" for name in names]
        wait = ("wait", f"--for=condition={condition}", f"--timeout={PATIENCE:.0f}s")
        done = self.completed("kubectl", "-n", namespace, *wait, *pods)
        assert done.returncode == 0, done.stderr.decode() + self.kubectl("-n", namespace, "describe", *pods)

    def start_dns(self) -> None:
        """Run CoreDNS as the cluster's DNS server."""
        self.load(image_archive(COREDNS, ("/coredns",), {"coredns": self._programs / "coredns"}))
        self.apply((HERE / "coredns.yaml").read_text(), "kube-system")
        self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
