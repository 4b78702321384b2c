"""Who runs in a pod, held against its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from istio_init.cli.app import main
from istio_init.errors_rare import UsageError
from istio_init.options.from_pod import read_pod
from istio_init.options.workload import RunsAs


def misfits_of(spec: dict[str, Any], annotations: dict[str, str] | None = None, **text: str) -> list[str]:
    pod = {"kind": "Pod", "metadata": {"annotations": annotations or {}}, "spec": spec}
    reading = read_pod(json.dumps(pod), "pod.yaml", text, lambda _kind, _name: None)
    return list(reading.misfits)


def as_(uid: int | None, gid: int | None = None) -> dict[str, Any]:
    return {"securityContext": {"runAsUser": uid, "runAsGroup": gid}}


APP, PROXY = {"name": "app"}, {"name": "istio-proxy"}
BYPASS = "container app runs as uid 1337, the proxy's (-u): its outbound traffic bypasses the proxy"
LOOP = "its own traffic is captured again, in a loop; set -u"
TPROXY = {"sidecar.istio.io/interceptionMode": "TPROXY"}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({**as_(1337), "containers": [APP]}, BYPASS),
        ({"containers": [{**APP, **as_(1337)}]}, BYPASS),
        ({**as_(1337), "containers": [{**APP, **as_(1000)}, {**PROXY, **as_(1337)}]}, ""),
        ({"containers": [{**APP, **as_(1000, 1337)}]}, "container app runs as gid 1337, the proxy's (-g)"),
        ({"containers": [APP, PROXY]}, ""),
        # Istio's documentation has init containers run as the proxy, to reach the network before it starts.
        ({"containers": [APP], "initContainers": [{"name": "fetch", **as_(1337)}]}, ""),
        ({"containers": [APP], "initContainers": [{"name": "log", "restartPolicy": "Always", **as_(1337)}]},
         "initContainer log runs as uid 1337"),
        ({"containers": [APP], "ephemeralContainers": [{"name": "debugger", **as_(1337)}]},
         "ephemeralContainer debugger runs as uid 1337"),
        ({"containers": [APP, {**PROXY, **as_(1234)}]}, ""),  # the injector takes it for -u
        ({"containers": [APP, {**PROXY, **as_(0)}]}, ""),  # its group is the image's, 1337
        ({"containers": [APP, {**PROXY, **as_(0, 0)}]}, LOOP),
    ],
)  # fmt: skip
def test_who_does_not_fit(spec: dict[str, Any], why: str) -> None:
    lines = misfits_of(spec)
    assert [why in line for line in lines] == ([True] if why else [])


def test_rules_for_another_user_than_the_proxys_are_a_loop() -> None:
    init = {"name": "istio-init", "args": ["istio-iptables", "-u", "1337"]}
    spec = {"initContainers": [init], "containers": [APP, {**PROXY, **as_(2000, 3000)}]}
    why = "istio-proxy runs as uid 2000 and gid 3000, the rules let uid 1337 and gid 1337 through: its own traffic is "
    assert misfits_of(spec) == [f"{why}captured again, in a loop; set -u 2000, or its runAsUser"]
    assert misfits_of(spec, proxy_uid="2000") == []
    assert misfits_of(spec, proxy_gid="3000") == []


def test_without_a_group_the_runtime_takes_the_users_own() -> None:
    init = {"name": "istio-init", "args": ["istio-iptables", "-u", "1337"]}
    (line,) = misfits_of({**as_(1000), "initContainers": [init], "containers": [PROXY]})
    assert line.startswith("istio-proxy runs as uid 1000 and gid 0, the rules let uid 1337 and gid 1337 through: ")
    assert misfits_of({**as_(1337), "initContainers": [init], "containers": [PROXY]}) == []


def test_tproxy_needs_root() -> None:
    (line,) = misfits_of({"containers": [APP, {**PROXY, **as_(1337)}]}, TPROXY)
    assert line.startswith("istio-proxy runs as uid 1337, but TPROXY needs CAP_NET_ADMIN")
    assert misfits_of({"containers": [APP, {**PROXY, **as_(0, 1337)}]}, TPROXY) == []
    # Istio's own example: -u becomes 1234, and the proxy is root, of a group that no rule knows.
    init = {"name": "istio-init", "args": ["istio-iptables", "-u", "1234", "-m", "TPROXY"]}
    (line,) = misfits_of({"initContainers": [init], "containers": [{**PROXY, **as_(0, 4321)}]}, TPROXY)
    assert LOOP.replace("-u", "-g 4321, or its runAsGroup") in line


def test_what_is_wrong_in_it_names_the_place() -> None:
    with pytest.raises(
        UsageError, match=r"^pod\.yaml: container app: securityContext: runAsUser: 'root': not a number"
    ):
        misfits_of({"containers": [{**APP, "securityContext": {"runAsUser": "root"}}]})


@pytest.mark.parametrize("verb", [["explain", "--outbound", "--to", "203.0.113.9:443"], ["prove"], ["manifest"]])
def test_verbs_warn(verb: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"kind": "Pod", "spec": {**as_(1337), "containers": [APP]}}))
    main([*verb, "--from-pod", str(tmp_path / "a.json")], {})
    assert f"warn\t{BYPASS}" in capfd.readouterr().err


def test_the_owners_of_all_containers() -> None:
    spec = {
        "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000]},
        "initContainers": [{"name": "a"}],
        "containers": [{"name": "b", **as_(5, 6)}],
    }
    pod = json.dumps({"kind": "Pod", "spec": spec})
    workload = read_pod(pod, "pod.yaml", {}, lambda _kind, _name: None).workload
    groups = (4000, 3000)
    assert workload.owners() == (RunsAs("a", True, 1000, 2000, groups), RunsAs("b", False, 5, 6, groups))
