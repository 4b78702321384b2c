"""The tables of docs/troubleshooting.md by symptom: each row's cause is made in a pod, and shows as the row says."""

from __future__ import annotations

import fcntl
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.inspect.diagnose.planting import diagnose, running
from integration.kit import program
from integration.kit.asking import Answer, ask
from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.endpoints import User
from integration.kit.pod import APP, PROXY, Pod
from integration.kit.residents import resident
from integration.project.test_docs_troubleshooting import TROUBLE, first_column
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

USUAL = "-u 1337 -i '*' -b '*' -d 15090,15021,15020"
OUT = ("explain", "--live", "--outbound", "--to")
QUERY = (*OUT, "10.99.0.1:53", "--protocol", "udp")


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod(IPV4) as running_pod:
        yield running_pod


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def verb(pod: Pod, *words: str) -> Answer:
    return ask(pod.namespace, words[0], "--netns", pod.namespace.path, *words[1:])


def manifest(annotations: Mapping[str, str], **spec: object) -> list[str]:
    """A pod's manifest in pod.json, as the page has it."""
    containers = [{"name": "istio-proxy", "args": ["proxy", "sidecar"]}, {"name": "app"}]
    value = {
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": dict(annotations)},
        "spec": {"containers": containers, **spec},
    }
    Path("pod.json").write_text(json.dumps(value))
    return ["--from-pod", "pod.json"]


INIT = {"name": "istio-init", "args": ["istio-iptables", *shlex.split(USUAL)]}
VALIDATION = {"name": "istio-validation", "args": ["istio-iptables", *shlex.split(USUAL), "--run-validation"]}


def not_injected(pod: Pod) -> None:
    with running(pod):
        answer = verb(pod, "diagnose", *manifest({}))
    assert "Cause: the pod was not injected" in answer.output
    assert "istio-injection=enabled" in answer.output


def by_the_plugin(pod: Pod) -> None:
    flags = manifest(INJECTED, initContainers=[VALIDATION])
    assert verb(pod, "check", *flags).output.startswith("absent (")


def in_the_nodes_network(pod: Pod) -> None:
    answer = ask(pod.namespace, "diagnose", *manifest(INJECTED, hostNetwork=True))
    assert "hostNetwork: the pod is in the node's own network, which is never captured" in " ".join(
        answer.output.split()
    )


def mode_none(pod: Pod) -> None:
    flags = manifest({**INJECTED, "sidecar.istio.io/interceptionMode": "NONE"})
    assert "interception mode NONE" in ask(pod.namespace, "diagnose", *flags).output


def wrong_namespace(pod: Pod) -> None:
    pod.apply(USUAL)
    there = ["--netns", pod.peer.path, *shlex.split(USUAL)]
    assert ask(pod.namespace, "check", *there).output.startswith("absent (")
    assert ask(pod.namespace, "check", *there[2:], "--netns", pod.namespace.path).output.startswith("in place (")


def native(pod: Pod) -> None:
    program.succeed(pod.namespace, *shlex.split(USUAL), "--native-nftables")
    assert "ISTIO" not in pod.namespace.run("iptables-save")
    assert "table inet istio-proxy-" in pod.namespace.run("nft", "list", "ruleset")
    assert verb(pod, "check").output.startswith("in place (native")


def legacy(pod: Pod) -> None:
    pod.apply(USUAL)
    assert "ISTIO" not in pod.namespace.run("nft", "list", "ruleset") + pod.namespace.run("iptables-nft-save")
    assert "ISTIO" in pod.namespace.run("iptables-legacy-save")
    assert "ISTIO_OUTPUT" in verb(pod, "show").output


NO_RULES: dict[str, Callable[[Pod], None]] = {
    "kubectl get pod POD -o jsonpath='{.spec.initContainers[*].name}'` names no `istio-init": not_injected,
    "it names `istio-validation": by_the_plugin,
    "hostNetwork: true": in_the_nodes_network,
    "sidecar.istio.io/interceptionMode: NONE": mode_none,
    "check --netns` of the node's own namespace": wrong_namespace,
    "iptables-save` shows none, `nft list ruleset` shows tables `istio-proxy-*": native,
    "nft list ruleset` or `iptables-nft-save` shows none, since the image was swapped": legacy,
}


def refused(pod: Pod) -> None:
    pod.apply(USUAL)
    with pod.client(APP) as client, pytest.raises(ConnectionRefusedError):
        client.connect(("10.99.0.1", 443))
    with pod.client(PROXY) as proxy:
        pod.listen_at_peer("world", 443)
        proxy.connect(("10.99.0.1", 443))


def loop(pod: Pod) -> None:
    pod.apply(USUAL)
    with resident(pod.namespace, "envoy", User(1500, 1500), tcp="15001 15006") as process:
        answer = ask(pod.namespace, "prove", "--live", "--pid", str(process))
        assert answer.code == 1
        assert f"BROKEN traffic of envoy (process {process})" in answer.output
        assert "the proxy's uid is not spared: it runs as 1500" in diagnose(pod).output


def tproxy(pod: Pod) -> None:
    pod.apply(f"{USUAL} -m TPROXY")
    pod.namespace.run("sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=1")
    assert "src_valid_mark" in verb(pod, "doctor", "-m", "TPROXY", *shlex.split(USUAL)).output
    with running(pod, flags="TPROXY"):
        assert "src_valid_mark is on" in diagnose(pod).output
        pod.namespace.run("sysctl", "-qw", "net.ipv4.conf.all.accept_local=1")
        assert diagnose(pod).code == 0
        pod.namespace.run("ip", "rule", "del", "fwmark", "1337")
        assert "the policy route of TPROXY is missing" in diagnose(pod).output


def ipv6(pod: Pod) -> None:
    pod.apply(f"{USUAL} --enable-ipv6=false")
    assert "--dual-stack" in verb(pod, "doctor", *shlex.split(USUAL)).output
    with running(pod):
        assert "IPv6 is not captured" in diagnose(pod).output
    pod.apply(f"{USUAL} --reconcile")
    pod.namespace.run("ip", "-6", "addr", "del", "::6/128", "dev", "lo")
    with running(pod):
        assert "the address ::6 is missing on lo" in diagnose(pod).output


def probes(pod: Pod) -> None:
    def verdict() -> str:
        return verb(pod, "explain", "--live", "--inbound", "--to", ":8081").output.splitlines()[0]

    pod.apply(USUAL)
    assert verdict().startswith("Verdict: captured")
    pod.apply(f"{USUAL},8081 --reconcile")
    assert verdict().startswith("Verdict: not captured")


HANGS: dict[str, Callable[[Pod], None]] = {
    "outbound connections are refused at once": refused,
    "Envoy's log is full of connections to itself, the CPU is busy": loop,
    "init containers of yours cannot reach the network": refused,
    "with TPROXY, nothing comes in": tproxy,
    "IPv6 hangs, IPv4 works": ipv6,
    "health checks fail": probes,
}


def no_servers(pod: Pod) -> None:
    pod.apply(f"{USUAL} --redirect-dns --dns-servers 10.99.0.9")
    assert verb(pod, *QUERY).output.startswith("Verdict: not captured")
    pod.apply(f"{USUAL} --redirect-dns --capture-all-dns --reconcile")
    assert verb(pod, *QUERY).output.startswith("Verdict: captured")


def zones(pod: Pod) -> None:
    flags = f"{USUAL} --redirect-dns --dns-servers 10.99.0.1"
    pod.apply(flags)
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        pod.namespace.run(tool, "-w", "-t", "raw", "-F")
    words = [*shlex.split(flags), "--enable-ipv6"]
    assert verb(pod, "check", *words).output.startswith("drifted (")
    program.succeed(pod.namespace, *words, "--reconcile")
    assert verb(pod, "check", *words).output.startswith("in place (")


def automatic_addresses(pod: Pod) -> None:
    pod.apply(USUAL)
    assert verb(pod, *OUT, "240.240.0.1:80").output.startswith("Verdict: captured")
    pod.apply(f"{USUAL} -x 240.240.0.0/16 --reconcile")
    assert verb(pod, *OUT, "240.240.0.1:80").output.startswith("Verdict: not captured")


DNS: dict[str, Callable[[Pod], None]] = {
    "DNS is not captured although it is configured": no_servers,
    "every second query hangs": zones,
    "names resolve to 240.240.x.x": automatic_addresses,
}


def capability(pod: Pod) -> None:
    done = program.completed(pod.namespace, *shlex.split(USUAL), prefix=("setpriv", "--bounding-set", "-net_admin"))
    assert done.returncode != 0
    assert "NET_ADMIN" in done.stderr.splitlines()[-1]


def lock(pod: Pod) -> None:
    path = Path("xtables.lock").resolve()
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        words = [*shlex.split(USUAL), "--wait", "0.2"]
        done = program.completed(pod.namespace, *words, env={"XTABLES_LOCKFILE": str(path)})
    assert done.returncode != 0
    for part in ("xtables.lock: held by", "--wait"):
        assert part in done.stderr.splitlines()[-1]


def others_exist(pod: Pod) -> None:
    pod.apply(USUAL)
    words = [*shlex.split(USUAL), "--enable-ipv6", "-o", "5432"]
    done = program.completed(pod.namespace, *words)
    assert done.returncode != 0
    for part in ("already exist", "--reconcile", "--cleanup-only"):
        assert part in done.stderr
    program.succeed(pod.namespace, *words, "--reconcile")


def annotation(pod: Pod) -> None:
    bad = {**INJECTED, "traffic.sidecar.istio.io/excludeOutboundPorts": "http"}
    error = Plugin(Path.cwd()).call("ADD", pod.namespace.path, bad, prevResult=PREVIOUS).error
    assert "excludeOutboundPorts" in error["msg"]
    assert "http" in error["msg"]


FAILS: dict[str, Callable[[Pod], None]] = {
    "NET_ADMIN": capability,
    "xtables.lock: held by": lock,
    "already exist": others_exist,
    "failed to setup network for sandbox": annotation,
}
TABLES = {
    "No rules at all": NO_RULES,
    "Everything hangs, or is refused": HANGS,
    "DNS": DNS,
    "The run itself fails": FAILS,
}
ROWS = {row: deed for table in TABLES.values() for row, deed in table.items()}


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_of_the_page_is_made(heading: str) -> None:
    assert first_column(TROUBLE, heading) == [*TABLES[heading]]


@pytest.mark.parametrize("row", ROWS)
def test_a_row(pod: Pod, row: str) -> None:
    ROWS[row](pod)
