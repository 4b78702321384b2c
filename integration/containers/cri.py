"""containerd with its CRI plugin, as a kubelet has it, with state of its own and its pods in a node's network."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cri_api.v1.api_pb2 as api
import grpc
from cri_api.v1.api_pb2_grpc import RuntimeServiceStub

from integration.containers.engine import Daemon, Engine, remove_cgroups, tool
from integration.containers.node import Node
from integration.kit.endpoints import awaited

PAUSE = "localhost/istio-init-pause:test"
CONFIGURATION = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = {without_apparmor}
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
"""


def make_pause(engine: Engine) -> None:
    """The image of a pod's first container: a program that waits, and nothing else."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(tool("catatonit"), "catatonit")
    engine.cli("import", "--change", 'ENTRYPOINT ["/catatonit", "-P"]', "-", PAUSE, text=archive.getvalue())


class Containerd:
    """From `with` to its end; its pods have to be gone by then.

    `pause` is the image of their first containers, `networks` the directory that their network is in.
    """

    def __init__(self, node: Node, pause: str = PAUSE, networks: Path | None = None) -> None:
        self.node, self.pause, self.networks = node, pause, networks or node.networks
        # A node may have several, each for a network.
        self.directory = node.directory / f"cri-{self.networks.name}"
        self.group = f"istio-init-{self.directory.name}-{os.getpid()}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory.mkdir()
            stack.callback(self._remove)
            stack.enter_context(self._daemon())
            self.channel = stack.enter_context(grpc.insecure_channel(f"unix://{self.directory}/sock"))
            self.runtime: Any = RuntimeServiceStub(self.channel)
            awaited(self._ready, "the CRI plugin")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def _daemon(self) -> Daemon:
        apparmor = Path("/sys/kernel/security/apparmor/profiles").exists()
        text = CONFIGURATION.format(
            directory=self.directory,
            pause=self.pause,
            plugins=self.node.programs,
            networks=self.networks,
            without_apparmor=str(not apparmor).lower(),
        )
        configuration = self.directory / "config.toml"
        configuration.write_text(text)
        command = [*self.node.entered(), tool("containerd"), "--config", str(configuration)]
        return Daemon(command, self.directory / "sock", self.directory / "log")

    def _ready(self) -> bool:
        status = self.runtime.Status(api.StatusRequest()).status
        return all(condition.status for condition in status.conditions)

    def _remove(self) -> None:
        shutil.rmtree(self.directory)
        remove_cgroups(self.group)

    def load(self, engine: Engine, *tags: str) -> None:
        """Bring images in from the Docker Engine."""
        command = [*self._ctr(), "images", "import", "-"]
        done = subprocess.run(command, input=engine.cli("save", *tags), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def _ctr(self) -> list[str]:
        return [tool("ctr"), f"--address={self.directory}/sock", "--namespace=k8s.io"]

    def run(self, name: str, image: str, *command: str, networks: Path) -> subprocess.CompletedProcess[str]:
        """What becomes of `ctr run --cni`; whatever is left of the container is removed.

        The directories that ctr looks in are built in: it gets a mount namespace in which they are ours.
        """
        identity = f"{name}-{os.getpid()}"
        mounts = f"mount --bind {networks} /etc/cni/net.d && mount -t tmpfs tmpfs /opt && mkdir /opt/cni"
        enter = [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            f'{mounts}; ln -s {self.node.programs} /opt/cni/bin; exec "$@"',
            "-",
        ]
        run = [*self._ctr(), "run", "--rm", "--cni", f"--cgroup=/{self.group}/{name}", image, identity, *command]
        done = subprocess.run([*enter, *self.node.entered(), *run], capture_output=True, text=True, check=False)
        # Where the network can't be made, ctr leaves a task that has not begun.
        for verb in (["tasks", "delete", "--force"], ["containers", "delete"]):
            subprocess.run([*self._ctr(), *verb, identity], capture_output=True, check=False)
        return done

    def sandbox(self, name: str, **more: Any) -> CriPod:  # noqa: ANN401 (protobuf's)
        """A pod's sandbox with its network. `more` are further fields of CRI's PodSandboxConfig."""
        logs = self.directory / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        usual = {"hostname": name, "linux": api.LinuxPodSandboxConfig(cgroup_parent=f"/{self.group}")}
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            log_directory=str(logs),
            **(usual | more),
        )
        return CriPod(self.runtime, config, logs)

    @contextlib.contextmanager
    def pod(self, name: str, **more: Any) -> Iterator[CriPod]:  # noqa: ANN401
        """The same, removed at the end with all that runs in it."""
        result = self.sandbox(name, **more)
        try:
            yield result
        finally:
            result.remove()


class CriPod:
    """A running sandbox."""

    def __init__(self, runtime: Any, config: api.PodSandboxConfig, logs: Path) -> None:  # noqa: ANN401 (grpc's)
        self.runtime, self.config, self.logs = runtime, config, logs
        self.identity: str = runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id

    def remove(self) -> None:
        """Stop and remove it, as a kubelet does, and all that runs in it."""
        self.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=self.identity))
        self.discard()

    def discard(self) -> None:
        """Remove it without having it stopped before, which takes half the time."""
        self.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=self.identity))

    @property
    def pid(self) -> int:
        """The process of the sandbox' own container."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=self.identity, verbose=True)
        return int(json.loads(self.runtime.PodSandboxStatus(request).info["info"])["pid"])

    @property
    def address(self) -> str:
        """The pod's first address."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=self.identity)
        return str(self.runtime.PodSandboxStatus(request).status.network.ip)

    def start(self, name: str, image: str, security: api.LinuxContainerSecurityContext, **more: Any) -> str:  # noqa: ANN401
        """Create and start a container; returns its identity. `more` are further fields of CRI's ContainerConfig."""
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name),
            image=api.ImageSpec(image=image),
            log_path=f"{name}.log",
            linux=api.LinuxContainerConfig(security_context=security),
            **more,
        )
        request = api.CreateContainerRequest(pod_sandbox_id=self.identity, config=config, sandbox_config=self.config)
        identity: str = self.runtime.CreateContainer(request).container_id
        self.runtime.StartContainer(api.StartContainerRequest(container_id=identity))
        return identity

    def finished(self, identity: str) -> int:
        """Wait until a container has ended; returns its exit code."""
        awaited(lambda: bool(self._status(identity).state == api.CONTAINER_EXITED), "the end of a container")
        return int(self._status(identity).exit_code)

    def _status(self, identity: str) -> Any:  # noqa: ANN401
        return self.runtime.ContainerStatus(api.ContainerStatusRequest(container_id=identity)).status

    def exec(self, identity: str, *command: str) -> tuple[int, str]:
        """Run a command in a container; returns its exit code and standard output."""
        request = api.ExecSyncRequest(container_id=identity, cmd=command, timeout=30)
        done = self.runtime.ExecSync(request)
        return done.exit_code, done.stdout.decode()

    def log(self, name: str) -> str:
        """What a container wrote, both outputs; the runtime puts time, stream and a flag before each line."""
        path = self.logs / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return "".join(line.split(" ", 3)[3] + "\n" for line in lines)
