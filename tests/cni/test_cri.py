"""Pods as a runtime tells them: recorded answers, and those that say less than one would like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import cri_api.v1.api_pb2 as api
import pytest

from istio_init.cni.node import cri
from istio_init.cni.node.cri import CONTAINERS, LIST, SOCKETS, STATUS, VARIABLE, Sandbox, endpoint, place, sandboxes
from istio_init.errors import InitError
from istio_init.kernel.host.grpc import NOT_FOUND, GrpcChannel, GrpcError

# What containerd 1.6.20 tells of a sandbox beside its status, less what is long and of no interest here.
RECORDED = Path(__file__).parent / "cri" / "containerd-1.6.json"
IDENTITY = "c7a6d2756ac4d36e3e4094210815def9a668a2bd6a65cf0e74d3dfd90adfce3c"
NETNS = "/var/run/netns/cni-2df8dbdb-dbb7-793a-31b0-c4e4d85c7db9"


class Runtime:
    """Answers by method, or by sandbox; what it has no answer for it does not find."""

    def __init__(self, items: list[Any], statuses: Mapping[str, Any]) -> None:
        self.items, self.statuses = items, statuses
        self.queried: list[str] = []

    def call(self, method: str, message: bytes) -> bytes:
        """A GrpcChannel's, in whose place this is."""
        if method == LIST:
            return bytes(api.ListPodSandboxResponse(items=self.items).SerializeToString())
        if method == CONTAINERS:
            return bytes(api.ListContainersResponse().SerializeToString())
        assert method == STATUS
        request = api.PodSandboxStatusRequest.FromString(message)
        assert request.verbose
        self.queried.append(request.pod_sandbox_id)
        if request.pod_sandbox_id not in self.statuses:
            raise GrpcError("the runtime's PodSandboxStatus: not found", NOT_FOUND)
        return bytes(self.statuses[request.pod_sandbox_id].SerializeToString())


def listed(name: str, identity: str, *, ready: bool = True) -> Any:  # noqa: ANN401 (protobuf's)
    about = api.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default")
    state = api.SANDBOX_READY if ready else api.SANDBOX_NOTREADY
    return api.PodSandbox(id=identity, metadata=about, state=state, annotations={"a": "listed"})


def status(network: Any = api.POD, info: str = "", state: Any = api.SANDBOX_READY) -> Any:  # noqa: ANN401
    options = api.NamespaceOption(network=network)
    linux = api.LinuxPodSandboxStatus(namespaces=api.Namespace(options=options))
    report = api.PodSandboxStatus(state=state, linux=linux, annotations={"a": "b"})
    return api.PodSandboxStatusResponse(status=report, info={"info": info} if info else {})


def read(items: list[Any], statuses: Mapping[str, Any]) -> list[Sandbox]:
    return list(sandboxes(cast("GrpcChannel", Runtime(items, statuses))))


def test_a_pod_as_containerd_tells_it() -> None:
    actual = read([listed("web", IDENTITY)], {IDENTITY: status(info=RECORDED.read_text())})
    desired = Sandbox(IDENTITY, "web", "default", "uid-web", ready=True, annotations={"a": "b"}, netns=NETNS, pid=16001)
    assert actual == [desired]


def test_pods_are_in_order_and_those_that_have_ended_are_not_asked_for() -> None:
    runtime = Runtime(
        [listed("b", "2"), listed("c", "3", ready=False), listed("a", "1")], {"1": status(), "2": status()}
    )
    actual = list(sandboxes(cast("GrpcChannel", runtime)))
    assert [(each.name, each.ready) for each in actual] == [("a", True), ("b", True), ("c", False)]
    assert runtime.queried == ["1", "2"]


def test_a_pod_that_goes_between_two_questions_has_ended() -> None:
    gone, stopped = read([listed("a", "1"), listed("b", "2")], {"2": status(state=api.SANDBOX_NOTREADY)})
    assert (gone.ready, stopped.ready) == (False, False)


def test_a_pod_in_the_nodes_network() -> None:
    (actual,) = read([listed("a", "1")], {"1": status(network=api.NODE)})
    assert (actual.host, actual.netns) == (True, "")


@pytest.mark.parametrize(
    "info",
    [
        "", "{", "[]", "1", "null", '{"pid": "1"}', '{"pid": -1}', '{"pid": 0, "runtimeSpec": null}',
        '{"runtimeSpec": {"linux": {"namespaces": 5}}}', '{"runtimeSpec": {"linux": {"namespaces": ["network", 1]}}}',
        '{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": 7}, {"type": "pid", "path": "/p"}]}}}',
    ],
)  # fmt: skip
def test_a_runtime_need_not_tell_where_a_namespace_is(info: str) -> None:
    assert place(info) == ("", 0)


def test_a_process_stands_for_its_namespace() -> None:
    spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}}
    assert place(json.dumps({"pid": 5, "runtimeSpec": spec})) == ("", 5)


def test_what_is_no_answer_is_said() -> None:
    class Nonsense:
        def call(self, method: str, message: bytes) -> bytes:
            """Neither list nor status."""
            return b"\x0a\xff"

    with pytest.raises(GrpcError, match=r"^the runtime's ListPodSandbox: its answer can't be decoded: "):
        list(sandboxes(cast("GrpcChannel", Nonsense())))


def test_the_socket(tmp_path: Path) -> None:
    assert endpoint("/a/b", {VARIABLE: "/c"}) == "/a/b"
    assert endpoint("", {VARIABLE: "unix:///c"}) == "/c"
    for named, variable, why in (("tcp://1.2.3.4:5", "", "--cri-socket"), ("", "npipe:////./pipe/x", VARIABLE)):
        with pytest.raises(InitError, match=f"^{why}: .*: not the path of a unix socket$"):
            endpoint(named, {VARIABLE: variable})
    with pytest.raises(InitError, match="name it with --cri-socket"):
        endpoint("", {}, str(tmp_path))
    for path in (SOCKETS[1], SOCKETS[0]):
        there = tmp_path / path[1:]
        there.parent.mkdir(parents=True)
        there.touch()
        assert endpoint("", {}, str(tmp_path)) == str(there)
    assert cri.endpoint("unix:///x", {}) == "/x"
