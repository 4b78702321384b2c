"""The CNI plugin as a runtime calls it: a process with CNI_* in its environment and the configuration on its input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from integration.kit import program
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT
from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.settings import CAPABILITY
from istio_init.options.annotations import STATUS
from istio_init.options.arguments import arguments

COMMAND = [sys.executable, "-m", "istio_init.cni"]
# What Istio's injection leaves on a pod with a sidecar where a CNI plugin makes the rules.
INJECTED = {STATUS: json.dumps({"initContainers": ["istio-validation"], "containers": ["istio-proxy"]})}
PREVIOUS = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/24"}], "dns": {}}


class CallResult(NamedTuple):
    """What came of a call."""

    code: int
    result: str
    log: list[dict[str, str]]

    @property
    def error(self) -> dict[str, Any]:
        """The error, of a call that failed."""
        assert self.code == 1, self
        document: dict[str, Any] = json.loads(self.result)
        assert document.keys() >= {"cniVersion", "code", "msg"}
        return document


class Plugin:
    """The plugin with a log and marks of its own under `directory`, for one network; `more` are further keys."""

    def __init__(self, directory: Path, version: str = "1.1.0", **more: Any) -> None:  # noqa: ANN401 (JSON)
        self.command = COMMAND
        self.log, self.run_dir = directory / "log" / "cni.log", directory / "run"
        places = {"log_file": str(self.log), "run_dir": str(self.run_dir)}
        self.configuration = {"cniVersion": version, "name": "pods", "type": "istio-init-cni", **places, **more}

    def start(self, command: str, netns: str, container: str = "a1", **more: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        """A call, begun, which waits for its standard input; `prefix` is a command to run it by."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": more.pop("interface", "eth0"),
            "CNI_PATH": "/usr/lib/cni",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}",
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
        }
        return subprocess.Popen(
            [*more.get("prefix", ()), *self.command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def text(self, annotations: Mapping[str, str] | None = None, **more: Any) -> str:  # noqa: ANN401
        """The configuration, with a pod's annotations and further keys."""
        runtime = {} if annotations is None else {"runtimeConfig": {CAPABILITY: annotations}}
        return json.dumps({**self.configuration, **runtime, **more})

    def call(
        self,
        command: str,
        netns: str = "",
        annotations: Mapping[str, str] | None = None,
        container: str = "a1",
        interface: str = "eth0",
        **more: Any,  # noqa: ANN401
    ) -> CallResult:
        """A whole call, whatever comes of it."""
        run = self.start(command, netns, container, interface=interface)
        return finished(run, self.text(annotations, **more))

    def done(self, command: str, netns: str = "", annotations: Mapping[str, str] | None = None, **more: Any) -> str:  # noqa: ANN401
        """What a call that must succeed prints."""
        answer = self.call(command, netns, annotations, **more)
        assert answer.code == 0, answer
        return answer.result

    def collect(self, valid: list[dict[str, str]] | None) -> str:
        """What GC prints, with the attachments that the runtime says it has."""
        configuration: dict[str, Any] = {"cni.dev/valid-attachments": valid}
        return self.done("GC", "", None, **configuration)

    def state(self, container: str = "a1") -> sandbox_state.SandboxState | None:
        """The state of a sandbox."""
        return sandbox_state.read(container, str(self.run_dir))

    def promised(self, container: str = "a1") -> object:
        """The rules that istio-iptables makes from the options in a sandbox's state."""
        state = self.state(container)
        assert state
        assert state.options
        with Namespace() as other:
            program.succeed(other, *arguments(state.options))
            return program.standing(other)


def finished(run: subprocess.Popen[str], text: str) -> CallResult:
    """What comes of a call that was begun."""
    result, log = run.communicate(text)
    assert "Traceback" not in log, log
    return CallResult(run.returncode, result, [json.loads(line) for line in log.splitlines()])
