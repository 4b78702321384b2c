"""A pod from the Kubernetes API, by its own client: what it tells, how often it is asked, and what is no answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from istio_init.cni.plugin import kubernetes_api, plugin
from istio_init.cni.plugin.protocol import CONFIGURATION, NEWEST, TRY_AGAIN, PluginError
from istio_init.cni.plugin.settings import Api as Asking
from istio_init.errors import Interrupted
from istio_init.log import Log
from istio_init.options.annotations import INJECT, STATUS
from istio_init.options.cni_pod import PodDescription
from tests.kit.kubernetes_api import Answer, pod, refusal, serving, write_kubeconfig

ROOT = Path(__file__).parents[2]
ANNOTATIONS = {STATUS: "{}", "traffic.sidecar.istio.io/includeInboundPorts": "80"}
FORBIDDEN = refusal(403, "Forbidden")
BUSY = refusal(503, "ServiceUnavailable")


def ask(kubeconfig: str, attempts: int = 3, timeout: float = 20) -> PodDescription:
    return kubernetes_api.pod(Asking(kubeconfig, attempts, 0, timeout), "default", "web-0", Log("none"))


def refused(kubeconfig: str, **how: float) -> PluginError:
    """The error, of one line, where the pod is not to be had."""
    with pytest.raises(PluginError) as raised:
        ask(kubeconfig, **how)  # type: ignore[arg-type]
    assert str(raised.value).isprintable()
    assert "secret" not in str(raised.value)
    return raised.value


def test_what_a_pod_says(tmp_path: Path) -> None:
    proxy = {
        "name": "istio-proxy",
        "args": ["proxy", "sidecar", "--domain", "x"],
        "env": [
            {"name": "INVALID_DROP", "value": "true"},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1001},
    }
    report = pod(ANNOTATIONS, containers=[{"name": "app"}, proxy], initContainers=[{"name": "istio-validation"}])
    report["metadata"]["labels"] = {INJECT: "true"}
    with serving(tmp_path, (200, report)) as server:
        answer = ask(server.kubeconfig)
    names = ("istio-validation", "app", "istio-proxy")
    variables = {"INVALID_DROP": "true", "POD_IP": ""}
    assert answer == PodDescription(ANNOTATIONS, {INJECT: "true"}, names, variables, "sidecar", 1000, 1001)
    assert server.requests == [("/api/v1/namespaces/default/pods/web-0", "Bearer secret-words")]


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        ({}, {}),
        ({"hostNetwork": True}, {"host_network": True}),
        (
            {"containers": [{"name": "app"}], "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]},
            {"containers": ("istio-proxy", "app")},
        ),
        ({"containers": [{"name": "istio-proxy", "args": ["proxy", "--x"]}]}, {"containers": ("istio-proxy",)}),
        (
            {"containers": [{"name": "istio-proxy", "command": ["pilot-agent", "proxy", "router"]}]},
            {"containers": ("istio-proxy",), "role": "router"},
        ),
    ],
)
def test_pods_of_other_kinds(tmp_path: Path, spec: dict[str, Any], changed: dict[str, Any]) -> None:
    with serving(tmp_path, (200, pod(ANNOTATIONS, **spec))) as server:
        answer = ask(server.kubeconfig)
    assert answer == PodDescription(ANNOTATIONS, {}, ("app", "istio-proxy")).replace(**changed)


def test_a_server_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    with serving(tmp_path, BUSY, (200, b"no JSON"), (200, pod(ANNOTATIONS))) as server:
        assert ask(server.kubeconfig).annotations == ANNOTATIONS
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "times", "why"),
    [
        (BUSY, 3, "503"),
        (refusal(404, "NotFound"), 3, "404"),
        ((200, b"{"), 3, "Error: "),
        ((200, b"<html>Who are you?</html>"), 3, "Error: "),
        ((200, {"kind": "Status", "metadata": {}}), 3, "not about this pod"),
        (FORBIDDEN, 1, "403"),
        (refusal(401, "Unauthorized"), 1, "401"),
    ],
)
def test_there_is_a_limit(tmp_path: Path, answer: Answer, times: int, why: str) -> None:
    with serving(tmp_path, answer) as server:
        error = refused(server.kubeconfig)
        assert len(server.requests) == times
    assert error.code == TRY_AGAIN
    assert "default/web-0" in str(error)
    assert why in str(error)
    assert server.kubeconfig in str(error)


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path, None) as server:
        error = refused(server.kubeconfig, attempts=2, timeout=0.2)
        assert len(server.requests) == 2
    assert error.code == TRY_AGAIN


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")
    assert "Error: " in str(refused(str(tmp_path / "kubeconfig")))


@pytest.mark.parametrize("text", [None, "", "{", "a: [", "kind: Config", "\0"])
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    error = refused(str(path))
    assert error.code == TRY_AGAIN
    assert f"kubernetes.kubeconfig: {path}: can't be used" in str(error)


def test_without_the_client_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    error = refused(str(tmp_path / "kubeconfig"))
    assert error.code == CONFIGURATION
    assert "pip install 'kubernetes>=" in str(error)


# -- The plugin with it.

CALL = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "a1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/nowhere/at/all",
    "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
}


def configuration(directory: Path, **more: object) -> bytes:
    places = {"run_dir": str(directory / "run"), "log_file": str(directory / "log")}
    return json.dumps({"cniVersion": NEWEST, "name": "pods", "type": "istio-init-cni", **places, **more}).encode()


def test_no_answer_is_an_error_and_nothing_is_begun(tmp_path: Path) -> None:
    with serving(tmp_path, FORBIDDEN) as server:
        asking = {"kubeconfig": server.kubeconfig, "attempts": 1}
        code, text = plugin.answer(CALL, configuration(tmp_path, kubernetes=asking))
    document = json.loads(text)
    assert (code, document["code"]) == (1, TRY_AGAIN)
    assert not (tmp_path / "run").exists()


def test_the_client_is_imported_only_to_ask(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from istio_init.cni.plugin import plugin\n"
        "plugin.answer(json.loads(sys.argv[1]), sys.stdin.buffer.read())\n"
        "print('kubernetes' in sys.modules)\n"
    )
    kubernetes = {"kubeconfig": str(tmp_path / "none"), "attempts": 1}
    for block, imported in (({}, "False"), (None, "True")):
        data = configuration(tmp_path, kubernetes=kubernetes, istio=block)
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(CALL)], input=data, cwd=ROOT, capture_output=True, check=True
        )
        assert done.stdout.decode().strip() == imported


def test_a_kubeconfig_that_is_no_small_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    large = tmp_path / "large"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    bomb = tmp_path / "bomb"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    bomb.write_text("\n".join(lines))
    for path, why in ((pipe, "not a regular file"), (large, "more than"), (bomb, "aliases")):
        assert why in str(refused(str(path)))


def test_a_command_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "SECONDS", 0.05)
    with pytest.raises(Interrupted, match=r"^ADD took longer than 0.05 s"), plugin.Deadline("ADD"):
        threading.Event().wait(30)
    with plugin.Deadline("ADD"):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_deadline_ends_the_attempts_at_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "SECONDS", 0.5)
    with (
        serving(tmp_path, *[BUSY] * 1000) as server,
        pytest.raises(Interrupted, match="ADD took longer"),
        plugin.Deadline("ADD"),
    ):
        kubernetes_api.pod(Asking(server.kubeconfig, 1000, 0.01, 20), "default", "web-0", Log("none"))
