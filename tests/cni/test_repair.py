"""What `istio-init cni repair` makes of pods without looking into them, and how it tells what it found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from istio_init.cli.verbs.cni import application
from istio_init.cli.verbs.cni_repair import ANY_NETWORK, document, exit_code, network_of, summary, text
from istio_init.cni.node import install, repair
from istio_init.cni.node.cri import SOCKETS, Sandbox
from istio_init.cni.node.directories import Directories, detect_networks
from istio_init.cni.node.repair import DRIFTED, GONE, HOST, UNCAPTURED, UNKNOWN, Finding, PodNetwork, examine
from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import CAPABILITY, LOG_FILE
from istio_init.errors import InitError
from istio_init.kernel.host.tcp_connections import connections, is_loopback, remotes
from istio_init.options.annotations import STATUS
from tests.cni.networks import LISTS, SINGLE

ROOT = Path(__file__).parents[2]
POD = Sandbox("a1", "web-1", "default", "uid", ready=True, annotations={"a": "b"})
NETWORK = PodNetwork("pods", {"type": "istio-init-cni", "capabilities": {CAPABILITY: True}})
OWN = "/proc/thread-self/ns/net"


def finding_of(state: str, why: str = "because", **more: Any) -> Finding:  # noqa: ANN401
    return Finding(POD, state, why, **more)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        ([finding_of(CAPTURED), finding_of(PASSED), finding_of(HOST), finding_of(GONE)], 0),
        ([finding_of(CAPTURED), finding_of(DRIFTED)], 3),
        ([finding_of(DRIFTED), finding_of(UNCAPTURED), finding_of(DRIFTED)], 4),
        ([finding_of(UNCAPTURED), finding_of(UNKNOWN)], 1),
        ([finding_of(UNCAPTURED, fixed=True), finding_of(DRIFTED, fixed=True)], 0),
        ([finding_of(UNCAPTURED, fixed=True), finding_of(DRIFTED)], 3),
    ],
)
def test_the_exit_code_is_that_of_the_worst(states: list[Finding], code: int) -> None:
    assert exit_code(states) == code


def test_the_text() -> None:
    states = [
        finding_of(CAPTURED, "the pod has a sidecar"),
        finding_of(UNCAPTURED, "no mark", connections=2),
        finding_of(UNCAPTURED, "no mark", connections=3, fixed=True),
        finding_of(DRIFTED, "changed", differences=("rule 1 missing", "rule 2 missing")),
        Finding(POD.replace(name="x\n\x1b[2J", namespace="é"), UNKNOWN, "a\tb"),
    ]
    assert text(states) == [
        "captured           default/web-1  the pod has a sidecar",
        "uncaptured         default/web-1  no mark; open connections that would be cut: 2",
        "uncaptured, fixed  default/web-1  no mark; open connections that were cut: 3",
        "drifted            default/web-1  changed; rule 1 missing and 1 more",
        r"unknown            é/x\n\x1b[2J   a\tb",
        "5 pods: 1 captured, 1 drifted, 1 uncaptured, 1 uncaptured, fixed, 1 unknown; --fix captures 2",
    ]
    assert summary([]) == "0 pods"


def test_the_document() -> None:
    report = document(finding_of(DRIFTED, differences=("one",), connections=0))
    assert json.loads(json.dumps(report)) == {
        "namespace": "default",
        "pod": "web-1",
        "uid": "uid",
        "sandbox": "a1",
        "state": "drifted",
        "fixed": False,
        "why": "because",
        "differences": ["one"],
        "connections": 0,
    }


def test_pods_that_are_not_looked_into() -> None:
    for pod, state in ((POD.replace(host=True), HOST), (POD.replace(ready=False), GONE)):
        assert examine(pod, NETWORK, fix=True).state == state
    assert examine(POD, NETWORK, fix=True).why == "the runtime does not tell where its network namespace is"
    lost = examine(POD.replace(netns="/nowhere", pid=2**30), NETWORK, fix=True)
    assert lost.state == UNKNOWN
    assert lost.why.startswith(f"/nowhere and /proc/{2**30}/ns/net: not there")
    wrong = examine(POD.replace(netns=OWN), PodNetwork("pods", {"log_file": "relative"}), fix=True)
    assert (wrong.state, wrong.why) == (UNKNOWN, "log_file: 'relative': not an absolute path")


def test_the_nodes_own_network_is_passed_through_whatever_the_runtime_says(tmp_path: Path) -> None:
    entry = {**NETWORK.entry, "istio": {}, "log_file": "", "run_dir": str(tmp_path)}
    pod = POD.replace(netns="/nowhere", pid=os.getpid(), annotations={STATUS: "{}"})
    assert examine(pod, PodNetwork("pods", entry), fix=True).state == PASSED
    assert list(tmp_path.iterdir()) == []


def test_annotations_are_handed_on_where_the_entry_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = []

    def noted(members: dict[str, Any]) -> None:
        observed.append(members.get("runtimeConfig"))
        raise InitError("seen")

    monkeypatch.setattr(repair, "settings", noted)
    for capabilities in ({CAPABILITY: True}, {CAPABILITY: False}, {}, 5):
        entry = {"type": "istio-init-cni", "capabilities": capabilities}
        assert examine(POD.replace(netns=OWN), PodNetwork("pods", entry), fix=False).why == "seen"
    assert observed == [{CAPABILITY: {"a": "b"}}, None, None, None]


def test_one_pods_fault_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(sandbox: Sandbox, network: PodNetwork, *, fix: bool) -> Finding:
        if sandbox.name == "worst":
            os._exit(3)
        if sandbox.name == "bad":
            raise RuntimeError("of\nits own")
        return Finding(sandbox, CAPTURED, "ok", ("a", "b"), 4, fix)

    monkeypatch.setattr(repair, "examine", fails)
    pods = [POD.replace(name=name) for name in ("worst", "bad", "good")]
    worst, bad, good = repair.repair(pods, NETWORK, fix=True)
    assert (worst.state, worst.why) == (UNKNOWN, "the process that inspected it was killed")
    assert (bad.state, bad.why) == (UNKNOWN, "internal error: RuntimeError: of\nits own")
    assert good == Finding(pods[2], CAPTURED, "ok", ("a", "b"), 4, fixed=True)


def test_the_network_that_the_plugin_is_in(tmp_path: Path) -> None:
    assert install.current_entry(str(tmp_path)) is None
    single = tmp_path / "05-a.conf"
    single.write_text(SINGLE)
    assert install.current_entry(str(tmp_path)) is None
    single.unlink()
    (tmp_path / "10-flannel.conflist").write_text(LISTS["10-flannel"])
    assert install.current_entry(str(tmp_path)) is None
    (tmp_path / "bin").mkdir()
    places = Directories(str(tmp_path), str(tmp_path / "bin"))
    install.install(places, __file__, {"type": "istio-init-cni", "istio": {}})
    assert install.current_entry(str(tmp_path)) == ("cbr0", {"type": "istio-init-cni", "istio": {}})
    (tmp_path / "10-flannel.conflist").write_text("{")
    with pytest.raises(InitError, match="10-flannel"):
        install.current_entry(str(tmp_path))


def test_where_the_entry_comes_from(tmp_path: Path) -> None:
    networks, config = tmp_path / "etc/cni/net.d", tmp_path / "plugin.json"
    with pytest.raises(InitError, match="name the directory with --cni-net-dir"):
        detect_networks(str(tmp_path))
    (tmp_path / "var/snap/microk8s/current/args/cni-network").mkdir(parents=True)
    networks.mkdir(parents=True)
    (networks / "10-flannel.conflist").write_text(LISTS["10-flannel"])
    assert detect_networks(str(tmp_path)) == str(networks)
    with pytest.raises(InitError, match="no network here has the plugin; add it with istio-init cni install"):
        network_of(str(networks), "")
    config.write_text('{"istio": {}, "capabilities": {}}')
    arguments = {"type": "istio-init-cni", "istio": {}, "capabilities": {}}
    assert network_of("", str(config)) == PodNetwork(ANY_NETWORK, arguments)
    conflist = json.loads(LISTS["10-flannel"])
    conflist["plugins"].append({"type": "istio-init-cni", "defaults": {}})
    (networks / "10-flannel.conflist").write_text(json.dumps(conflist))
    assert network_of(str(networks), "") == PodNetwork("cbr0", conflist["plugins"][-1])
    assert network_of(str(networks), str(config)) == PodNetwork("cbr0", arguments)


def test_the_job_that_repairs_a_node() -> None:
    """What deploy/ has for it: an existing command, the host's places by their paths there, known fields."""
    job = yaml.safe_load((ROOT / "deploy/cni-repair.yaml").read_text())
    for release in ("1.30", "1.34"):
        kubernetes_validate.validate(job, release, strict=True)
    pod = job["spec"]["template"]
    objects = yaml.safe_load_all((ROOT / "deploy/istio-init-cni.yaml").read_text())
    [selector] = [each["spec"]["selector"]["matchLabels"] for each in objects if each["kind"] == "DaemonSet"]
    # A pod with the labels of the DaemonSet's selector is adopted by it, and deleted as one too many.
    assert not selector.items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    words: list[str] = container["command"] + container["args"]
    program, group, verb, *flags = words
    assert (program, group) == ("/usr/local/bin/istio-init", "cni")
    recorded = typer.main.get_command(application).commands[verb].params  # type: ignore[attr-defined]
    names = {name for parameter in recorded for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {flag.partition("=")[0] for flag in flags} <= names
    paths = {each["name"]: each["hostPath"]["path"] for each in pod["spec"]["volumes"]}
    assert {each["name"]: each["mountPath"] for each in container["volumeMounts"]} == paths
    assert paths["runtime"] in SOCKETS
    assert sandbox_state.DIRECTORY.startswith(f"{paths['records']}/")
    assert LOG_FILE.startswith(f"{paths['log']}/")
    assert container["image"] in (ROOT / "deploy/istio-init-cni.yaml").read_text()
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]}


# As the kernel prints them on a machine whose words begin with the lowest byte.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0200090A:9C40 0100090A:0050 01 00000000:00000000 02:000A7C00 00000000  1000        0 2 1 0 20 4 30 10 -1
   2: 0100007F:9C41 0100007F:1F90 01 00000000:00000000 02:000A7C00 00000000     0        0 3 1 0 20 4 30 10 -1
   3: 0200090A:9C42 0100090A:0051 06 00000000:00000000 03:000A7C00 00000000     0        0 0 3 0
"""


def test_open_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "little")
    assert list(remotes(iter(TCP.splitlines()))) == [bytes([10, 9, 0, 1]), bytes([127, 0, 0, 1])]
    assert list(remotes(iter([]))) == []
    for address, local in (
        (bytes([127, 1, 2, 3]), True),
        (bytes([10, 9, 0, 1]), False),
        (bytes(15) + b"\1", True),
        (bytes(16), False),
        (bytes(10) + b"\xff\xff\x7f\0\0\1", True),
        (bytes(10) + b"\xff\xff\x0a\0\0\1", False),
    ):
        assert is_loopback(address) == local
    assert connections() >= 0
