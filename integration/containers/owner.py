"""A container that owns a network namespace, as a pod's first container does, seen from outside."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import TYPE_CHECKING, Self

from integration.containers.engine import Engine

if TYPE_CHECKING:
    from docker.models.containers import Container

# Exactly what a pod needs to grant. docs/deploy.md has the same in a pod's words.
CAPABILITIES = ("NET_ADMIN", "NET_RAW")
TABLES = ("raw", "mangle", "nat")


class Run:
    """How one run of the image ended."""

    def __init__(self, code: int, log: str) -> None:
        self.code, self.log = code, log


class Owner:
    """The owner of a namespace from `with` to its end; `init` runs the image in it."""

    def __init__(self, engine: Engine, base: str, image: str, *command: str, ipv6: bool = False) -> None:
        self.engine, self.base, self.image = engine, base, image
        self.command = command or ("sleep", "infinity")
        self.sysctls = {"net.ipv6.conf.all.disable_ipv6": "0"} if ipv6 else {}

    def __enter__(self) -> Self:
        self.container: Container = self.engine.client.containers.run(
            self.base,
            list(self.command),
            detach=True,
            network_mode="none",
            user="1000:1000",
            cap_drop=["ALL"],
            sysctls=self.sysctls,
        )
        self.container.reload()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.container.remove(force=True)

    @property
    def pid(self) -> int:
        """The process of the container, in whose namespace everything happens."""
        return int(self.container.attrs["State"]["Pid"])

    def init(self, *arguments: str, capabilities: tuple[str, ...] = CAPABILITIES, user: str = "0") -> Run:
        """Run the image as an init container with the least rights, and remove it."""
        container = self.started(*arguments, capabilities=capabilities, user=user)
        try:
            return finished(container)
        finally:
            container.remove(force=True)

    def started(
        self, *arguments: str, capabilities: tuple[str, ...] = CAPABILITIES, user: str = "0", entry: str | None = None
    ) -> Container:
        """The same, not waited for and not removed."""
        return self.engine.client.containers.run(
            self.image,
            list(arguments),
            entrypoint=entry,
            detach=True,
            network_mode=f"container:{self.container.id}",
            user=user,
            cap_drop=["ALL"],
            cap_add=list(capabilities),
            read_only=True,
            security_opt=["no-new-privileges"],
        )

    def inside(self, *command: str) -> str:
        """What a command of this machine prints, run in the namespace."""
        entering = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]
        done = subprocess.run(entering, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def saved(self, family: str = "ipv4") -> dict[str, str]:
        """The tables as they are, from *table to COMMIT, that have Istio rules."""
        tool = "iptables-legacy-save" if family == "ipv4" else "ip6tables-legacy-save"
        existing = self.inside("cat", "/proc/net/ip_tables_names" if family == "ipv4" else "/proc/net/ip6_tables_names")
        return {table: _body(self.inside(tool, "-t", table)) for table in TABLES if table in existing.split()}


def finished(container: Container) -> Run:
    """Wait for a container's end."""
    code = container.wait()["StatusCode"]
    return Run(code, container.logs().decode())


def _body(text: str) -> str:
    """The save text without comments and counters: they tell when, not what."""
    lines = (line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    return "".join(line.rpartition(" [")[0] + " [0:0]\n" if line.startswith(":") else line for line in lines)
