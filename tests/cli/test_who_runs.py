"""Who runs in a pod: explain asks about the manifest's users, prove says what they mean."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from istio_init.cli.app import main
from istio_init.kernel.host.processes import sharing_network

if TYPE_CHECKING:
    from pathlib import Path

QUIET = {"ENVOY_USER": "0"}


def pod(spec: dict[str, Any], *containers: dict[str, Any]) -> str:
    listed = [{"image": "i", **container} for container in containers or ({"name": "app"},)]
    return yaml.safe_dump(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {**spec, "containers": listed}}
    )


def container(name: str, uid: int, gid: int | None = None) -> dict[str, Any]:
    context = {"runAsUser": uid} | ({} if gid is None else {"runAsGroup": gid})
    return {"name": name, "securityContext": context}


def run(capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, Any]:
    code = main(shlex.split(f"{command} --output json"), QUIET)
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("manifest", "owner", "verdict"),
    [
        (pod({"securityContext": {"runAsUser": 1337}}), (1337, 0), "not captured"),
        (pod({}, container("app", 2000, 3000)), (2000, 3000), "captured"),
        (pod({}, container("istio-proxy", 1337), container("app", 5, 1337)), (5, 1337), "not captured"),
        (pod({}), (1000, 1000), "captured"),
    ],
)
def test_explain_asks_about_the_manifests_user(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, manifest: str, owner: tuple[int, int], verdict: str
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(manifest)
    _, answer = run(capsys, f"explain --from-pod {file} --outbound --to 203.0.113.9:443")
    packet = answer["legs"][0]["packet"]
    assert ((packet["uid"], packet["gid"]), answer["verdict"]) == (owner, verdict)
    _, answer = run(capsys, f"explain --from-pod {file} --outbound --to 203.0.113.9:443 --uid 7")
    assert answer["legs"][0]["packet"]["uid"] == 7


@pytest.mark.parametrize(
    ("manifest", "flags", "broken"),
    [
        (pod({}, container("app", 1337)), "", "traffic of app (uid 1337, gid 0) is treated as any application's"),
        (pod({}, container("istio-proxy", 4444, 4444)), "-u 1337 -g 1337",
         "traffic of istio-proxy (uid 4444, gid 4444) is treated as the proxy's"),
        (pod({}, container("istio-proxy", 1337, 1337)), "-m TPROXY",
         "traffic of istio-proxy (uid 1337, gid 1337) is treated as the proxy's"),
        (pod({}, container("istio-proxy", 1337, 1337), container("app", 2000)), "", ""),
    ],
)  # fmt: skip
def test_prove_says_what_the_users_mean(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, manifest: str, flags: str, broken: str
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(manifest)
    code, answer = run(capsys, f"prove --from-pod {file} {flags}")
    faults = {fault["claim"] for fault in answer["faults"] if not fault["known"]}
    assert (code, broken in faults if broken else not faults) == (1 if broken else 0, True)


def test_the_users_of_one_manifest_are_not_those_of_the_next_question(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(pod({}, container("app", 2000)))
    run(capsys, f"explain --from-pod {file} --outbound")
    _, answer = run(capsys, "explain --outbound -i *")
    assert answer["legs"][0]["packet"]["uid"] == 1000


def test_the_processes_of_a_namespace_are_found(tmp_path: Path) -> None:
    """A /proc of four processes, of which the third is in another namespace and the last ended meanwhile."""
    for pid, space, name, ids in (
        (7, "a", "app", 2000),
        (8, "a", "envoy", 1337),
        (9, "b", "other", 5),
        (10, "a", "", 0),
    ):
        (tmp_path / f"{pid}/ns").mkdir(parents=True)
        (tmp_path / space).touch()
        os.link(tmp_path / space, tmp_path / f"{pid}/ns/net")
        if name:
            text = f"Name:\t{name}\nUid:\t1\t2\t3\t{ids}\nGid:\t1\t2\t3\t{ids + 1}\n"
            (tmp_path / f"{pid}/status").write_text(text)
    actual = sharing_network(8, str(tmp_path))
    assert [(each.pid, each.name, each.uid, each.gid) for each in actual] == [
        (7, "app", 2000, 2001),
        (8, "envoy", 1337, 1338),
    ]
    assert sharing_network(11, str(tmp_path)) == ()
