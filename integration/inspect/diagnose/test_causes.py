"""Causes of calls that bypass the sidecar, or fail, planted in real pods: `diagnose` names each, with its packet."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pytest

from integration.inspect.diagnose.planting import CAPTURING, DNS, FAULT, SIDECAR, USUAL, diagnose, names, running
from integration.kit.asking import Answer, ask
from integration.kit.endpoints import User
from integration.kit.pod import APP, PROXY, Pod
from integration.kit.residents import resident
from istio_init.cli.verbs import diagnose_bundle, diagnose_pod
from istio_init.cni.node import cri, cri_pb2
from istio_init.inspect.diagnose import collect
from istio_init.kernel.host import containers
from istio_init.model import parsers
from istio_init.model.rules import IPV4
from tests.cni.test_cri import Runtime, listed, status

if TYPE_CHECKING:
    from collections.abc import Callable

# What is planted by other flags alone, and the words that name it.
BY_FLAGS = {
    "excluded CIDR": ("-x 10.99.0.0/16", "the destination is excluded: 10.99.0.0/16", "excludeOutboundIPRanges"),
    "excluded port": ("-o 5432", "the port is excluded: 5432", "excludeOutboundPorts"),
    "excluded inbound port": ("-d 15090,8081", "the port is excluded: 8081", "excludeInboundPorts"),
    "not included": ("-i 10.96.0.0/12", "only 10.96.0.0/12 is captured outbound", "includeOutboundIPRanges"),
    "listed inbound ports": ("-b 9080", "only these inbound ports are captured: 9080", "includeInboundPorts"),
    "excluded group": ("--istio-outbound-owner-groups-exclude 7", "calls of group 7 are excluded", "owner-groups"),
    "own interface": ("-c veth0", "interface veth0, the pod's own interface, is excluded", "excludeInterfaces"),
    "second network": ("-c veth1", "interface veth1, a second network of the pod, is excluded", "excludeInterfaces"),
    "kubevirt": ("-k veth0", "named as a virtual machine's (kubevirt)", "Packet: tcp"),
    "other ports": ("-p 16001 -z 16006", "other ports than the proxy's: 16001", "the sidecar listens on 15000, 15001"),
    "IPv6": ("--enable-ipv6=false", "IPv6 is not captured", "Packet: tcp [fd77::2]"),
    "older Istio": ("--compat-version 1.13", "those of Istio 1.13 or older", "HBONE"),
}


@pytest.mark.parametrize(("flags", "cause", "further"), BY_FLAGS.values(), ids=BY_FLAGS)
def test_flags(pod: Pod, flags: str, cause: str, further: str) -> None:
    pod.apply(f"{USUAL} {flags}")
    with running(pod):
        names(diagnose(pod), cause, further)


def flush(pod: Pod) -> None:
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        pod.namespace.run(tool, "-w", "-t", "nat", "-F", "ISTIO_OUTPUT")


def unroute(pod: Pod) -> None:
    pod.namespace.run("ip", "rule", "del", "fwmark", "1337")


def lose_address(pod: Pod) -> None:
    pod.namespace.run("ip", "-6", "addr", "del", "::6/128", "dev", "lo")


def precede(pod: Pod) -> None:
    pod.insert("nat", "OUTPUT -p tcp -m tcp --dport 443 -j ACCEPT")


def drop_zones(pod: Pod) -> None:
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        pod.namespace.run(tool, "-w", "-t", "raw", "-F")
        pod.namespace.run(tool, "-w", "-t", "raw", "-X")


def twice(pod: Pod) -> None:
    pod.namespace.run("iptables-nft-restore", "--noflush", text=pod.namespace.run("iptables-legacy-save", "-t", "nat"))


def change(pod: Pod) -> None:
    pod.namespace.run("iptables-legacy", "-w", "-t", "nat", "-I", "ISTIO_OUTPUT", "-p", "udp", "-j", "RETURN")


def forbid(pod: Pod) -> None:
    pod.namespace.run("iptables-legacy", "-w", "-P", "INPUT", "DROP")


def leave(pod: Pod) -> None:
    pod.namespace.run("iptables-legacy", "-w", "-t", "nat", "-D", "OUTPUT", "-j", "ISTIO_OUTPUT")


def down(pod: Pod) -> None:
    pod.namespace.run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")


def translate(pod: Pod) -> None:
    for command in (
        "add table ip mine",
        "add chain ip mine out { type nat hook output priority -110 ; }",
        "add rule ip mine out tcp dport 443 redirect to :9",
    ):
        pod.namespace.run("nft", command)


def sysctl(name: str, value: str) -> Callable[[Pod], None]:
    def deed(pod: Pod) -> None:
        pod.namespace.run("sysctl", "-qw", f"{name}={value}")

    return deed


# What is done to a pod that is captured: its flags, the deed, and the words that name it.
PLANTED: dict[str, tuple[str, Callable[[Pod], None], str, str]] = {
    "flushed": ("", flush, "a chain of Istio's was flushed or removed: ISTIO_OUTPUT", "Packet: tcp 10.77.0.2:40000"),
    "foreign rule": ("", precede, "a rule of another program precedes Istio's in nat OUTPUT", "--dport 443 -j ACCEPT"),
    "policy route": ("-m TPROXY", unroute, "the policy route of TPROXY is missing", "ip -4 rule add fwmark 1337"),
    "::6": ("", lose_address, "the address ::6 is missing on lo", "ip -6 addr add ::6/128 dev lo"),
    "src_valid_mark": (
        "-m TPROXY", sysctl("net.ipv4.conf.all.src_valid_mark", "1"), "src_valid_mark is on", "accept_local"
    ),
    "tcp_fwmark_accept": (
        "-m TPROXY", sysctl("net.ipv4.tcp_fwmark_accept", "1"), "tcp_fwmark_accept is on", "tcp_fwmark_accept=0"
    ),
    "zones": (DNS, drop_zones, "DNS is captured without conntrack zones", "raw ISTIO_OUTPUT_DNS"),
    "two backends": ("", twice, "the rules were made twice, in different backends: legacy and nft", "clean"),
    "policy": ("", forbid, "the policy of INPUT in filter is DROP", "Packet: tcp"),
    "jump removed": ("", leave, "the rules were changed: 1 difference", "missing: -j ISTIO_OUTPUT"),
    "lo down": ("", down, "interface lo is down", "ip link set lo up"),
    "nft": ("", translate, "another program's nftables table translates destinations: mine", "nft list table ip mine"),
    "changed": ("", change, "the rules were changed: 1 difference", "rule 1 unexpected: -p udp -j RETURN"),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "deed", "cause", "further"), PLANTED.values(), ids=PLANTED)
def test_planted(pod: Pod, flags: str, deed: Callable[[Pod], None], cause: str, further: str) -> None:
    pod.apply(f"{USUAL} {flags}")
    deed(pod)
    with running(pod, flags=flags):
        names(diagnose(pod), cause, further)


@pytest.mark.parametrize(("user", "kind"), [(User(1337, 0), "uid"), (User(5, 1337), "gid")])
def test_an_app_that_runs_as_the_proxy(pod: Pod, user: User, kind: str) -> None:
    pod.apply(USUAL)
    with running(pod), resident(pod.namespace, "batch", user) as process:
        answer = diagnose(pod)
        names(answer, f"the app runs as the proxy's {kind} 1337", f"batch (process {process})", f"uid {user.uid}")
        by_pid = ask(pod.peer, "diagnose", "--pid", str(process))
        assert by_pid.output == answer.output


def test_dns_without_the_agent(pod: Pod) -> None:
    pod.apply(f"{USUAL} {DNS}")
    with running(pod, udp=""):
        names(diagnose(pod), "DNS is captured without the agent: nobody listens on port 15053", "Packet: udp")


def test_dns_servers_that_the_pod_does_not_ask(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.apply(f"{USUAL} {DNS}")
    monkeypatch.setattr(collect, "nameservers", lambda _actual: parsers.addresses("10.99.0.1,10.96.0.10"))
    with running(pod):
        names(diagnose(pod), "DNS is captured for other servers than the pod asks: 10.96.0.10", "Packet: udp")


def test_the_init_container_never_ran(pod: Pod) -> None:
    with running(pod):
        names(
            diagnose(pod), "the init container (or the CNI plugin) never ran", "the sidecar runs: envoy", "Packet: tcp"
        )


def test_the_proxy_does_not_listen(pod: Pod) -> None:
    pod.apply(USUAL)
    with resident(pod.namespace, "app", APP, tcp="8080"):
        names(diagnose(pod), "the proxy is not listening", "port 15001, where nobody listens", "Packet: tcp 10.77.0.2")


def test_the_proxys_own_calls_loop(pod: Pod) -> None:
    pod.apply(USUAL)
    with running(pod, User(1500, 1500)):
        names(diagnose(pod), "the proxy's uid is not spared: it runs as 1500", "-u 1500", "Packet: tcp")


def test_the_nodes_namespace(pod: Pod) -> None:
    pod.namespace.run("iptables-legacy", "-w", "-t", "nat", "-N", "KUBE-SERVICES")
    with resident(pod.namespace, "kube-proxy", tcp="10256"):
        names(diagnose(pod), "the node's own namespace was inspected instead of the pod's", "KUBE-SERVICES")


def test_connections_from_before(pod: Pod) -> None:
    pod.listen_at_peer("server", 7000)
    with resident(pod.namespace, "app", APP, to="10.99.0.1:7000"):
        pod.apply(USUAL)
        with resident(pod.namespace, "envoy", PROXY, tcp=SIDECAR):
            names(
                diagnose(pod),
                "the rules were made after the app connected: 1 open connection",
                "10.99.0.1:7000, uid 1000",
            )


def test_mode_none(pod: Pod) -> None:
    with resident(pod.namespace, "pilot-agent", PROXY, mode="NONE"):
        names(diagnose(pod), "interception mode NONE", "ISTIO_META_INTERCEPTION_MODE=NONE")


POD = """
apiVersion: v1
kind: Pod
metadata: {name: reviews, annotations: {sidecar.istio.io/status: '{}', sidecar.istio.io/interceptionMode: MODE}}
spec:
  hostNetwork: HOST
  containers:
  - {name: istio-proxy, args: [proxy, sidecar], securityContext: {runAsUser: 1337}}
  - {name: reviews, securityContext: {runAsUser: USER}}
"""


def manifest(tmp_path: Path, mode: str = "REDIRECT", host: str = "false", user: str = "1000") -> list[str]:
    path = tmp_path / "pod.yaml"
    path.write_text(POD.replace("MODE", mode).replace("HOST", host).replace("USER", user))
    return ["--from-pod", str(path)]


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"host": "true"}, "hostNetwork: the pod is in the node's own network"),
        ({"mode": "NONE"}, "interception mode NONE"),
        ({"user": "1337"}, "the app runs as the proxy's uid 1337"),
    ],
)
def test_manifests(pod: Pod, tmp_path: Path, wrong: dict[str, str], cause: str) -> None:
    names(ask(pod.namespace, "diagnose", *manifest(tmp_path, **wrong)), cause)
    assert ask(pod.namespace, "diagnose", *manifest(tmp_path)).code == 0


def test_rules_in_another_backend_than_asked(pod: Pod, tmp_path: Path) -> None:
    pod.apply(USUAL)
    path = tmp_path / "pod.yaml"
    words = "[istio-iptables, -i, '*', -b, '*', -d, '15090,15021,15020', --native-nftables]"
    spec = f"{{initContainers: [{{name: istio-init, args: {words}}}]}}"
    path.write_text(f"kind: Pod\nmetadata: {{name: x}}\nspec: {spec}\n")
    with running(pod):
        names(diagnose(pod, "--from-pod", str(path)), "made in another backend: in the legacy tables", "initContainer")


def test_what_was_wanted_is_held_against_the_rules(pod: Pod, tmp_path: Path) -> None:
    pod.apply(f"{USUAL} -x 10.99.0.0/16")
    with running(pod):
        names(diagnose(pod, *manifest(tmp_path)), "the rules were changed", "annotations of")


@pytest.mark.parametrize(
    ("flags", "backend"),
    [("", "legacy"), ("", "nft"), ("", "native"), ("-m TPROXY", "legacy"), (DNS, "legacy"), (DNS, "native")],
)
def test_healthy_pods(flags: str, backend: str) -> None:
    with Pod(IPV4, backend) as pod:
        pod.apply(f"{USUAL} {flags}")
        with running(pod, flags=flags):
            answer = diagnose(pod)
            assert answer.code == 0, answer.output
            assert answer.output.startswith("HEALTHY: ")
            call = diagnose(pod, "--to", "10.99.0.1:443")
            assert (call.code, "captured" in call.output) == (0, True)
            assert diagnose(pod, "--from", "10.77.0.1", "--to", ":8080").code == 0


def test_one_call(pod: Pod) -> None:
    pod.apply(f"{USUAL} -x 10.99.0.0/16 -o 5432")
    with running(pod, tcp=CAPTURING):
        assert diagnose(pod, "--to", "203.0.113.9:443").code == 0
        names(
            diagnose(pod, "--to", "10.99.0.1:443"), "this call bypasses the sidecar", "-d 10.99.0.0/16 -j RETURN", "-x"
        )
        names(diagnose(pod, "--url", "http://203.0.113.9:5432/"), "--dport 5432", "excludeOutboundPorts")


def test_what_cannot_be_known(pod: Pod, tmp_path: Path) -> None:
    answer = ask(pod.namespace, "diagnose", "--netns", f"{pod.namespace.path}-gone")
    assert answer.code == 4
    assert answer.output.startswith("CANNOT KNOW: ")
    named = ask(
        pod.namespace, "diagnose", "default/reviews", "--cri-socket", str(tmp_path / "none.sock"), "--output", "json"
    )
    assert named.code == 4
    assert named.document["unknown"]


def test_a_dump(pod: Pod, tmp_path: Path) -> None:
    pod.apply(USUAL)
    path = tmp_path / "dump"
    path.write_text(pod.namespace.run("iptables-legacy-save") + pod.namespace.run("ip6tables-legacy-save"))
    answer = ask(pod.namespace, "diagnose", "--from-save", str(path))
    assert (answer.code, answer.output.splitlines()[0]) == (
        0,
        "HEALTHY: calls pass through the sidecar, as far as the dump tells",
    )
    flush(pod)
    path.write_text(pod.namespace.run("iptables-legacy-save"))
    names(ask(pod.namespace, "diagnose", "--from-save", str(path)), "flushed or removed: ISTIO_OUTPUT")


def test_a_shell_in_the_sidecars_container_is_no_app(monkeypatch: pytest.MonkeyPatch, pod: Pod) -> None:
    pod.apply(USUAL)
    with running(pod), resident(pod.namespace, "bash", PROXY):
        assert diagnose(pod).code == FAULT
        monkeypatch.setattr(containers, "of_process", lambda _pid: {"a"})
        assert diagnose(pod).code == 0


class Channel(Runtime):
    """A runtime that knows the pods of the test."""

    listed: ClassVar[list[Any]] = []
    recorded: ClassVar[dict[str, Any]] = {}

    def __init__(self, _path: str) -> None:
        super().__init__(self.listed, self.recorded)

    def call(self, method: str, message: bytes) -> bytes:
        """No containers, unless a test has some."""
        return b"" if method == cri.CONTAINERS else super().call(method, message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_pod_by_name(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    space = json.dumps({"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": pod.namespace.path}]}}})
    Channel.listed[:] = [listed("reviews", "one"), listed("web", "two"), listed("host", "three")]
    Channel.recorded.update(one=status(info=space), two=status(info=space), three=status(network=cri_pb2.NODE))
    monkeypatch.setattr(diagnose_pod, "GrpcChannel", Channel)
    pod.apply(USUAL)

    def by_name(name: str) -> Answer:
        return ask(pod.peer, "diagnose", name, "--cri-socket", "/run/cri")

    with running(pod):
        assert by_name("reviews").code == 0
        assert by_name("default/reviews").code == 0
        flush(pod)
        names(by_name("reviews"), "flushed or removed: ISTIO_OUTPUT")
    assert by_name("other/reviews").output.startswith("CANNOT KNOW: POD: 'other/reviews': no running pod of that name")
    names(by_name("host"), "hostNetwork: the pod is in the node's own network")


def test_what_the_init_container_was_started_with(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    space = json.dumps({"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": pod.namespace.path}]}}})
    Channel.listed[:], Channel.recorded["one"] = [listed("reviews", "one")], status(info=space)
    process = {
        "args": ["pilot-agent", "istio-iptables", "-i", "*", "-b", "*", "-d", "15090,15021,15020", "-q", "9000"],
        "env": ["ISTIO_META_DNS_CAPTURE=false", "TOKEN=s3cret", "ENABLE_IPV6=true"],
    }
    started = cri_pb2.ContainerStatusResponse(info={"info": json.dumps({"runtimeSpec": {"process": process}})})
    container = cri_pb2.Container(id="init", metadata=cri_pb2.ContainerMetadata(name="istio-init"))
    answers = {
        cri.CONTAINERS: cri_pb2.ListContainersResponse(containers=[container]).SerializeToString(),
        cri.CONTAINER: started.SerializeToString(),
    }

    class WithContainers(Channel):
        def call(self, method: str, message: bytes) -> bytes:
            return answers[method] if method in answers else super().call(method, message)

    monkeypatch.setattr(diagnose_pod, "GrpcChannel", WithContainers)
    pod.apply(USUAL)
    with running(pod), resident(pod.namespace, "web", APP) as process_id:
        for words in (["reviews"], ["--pid", str(process_id)]):
            answer = ask(pod.peer, "diagnose", *words, "--cri-socket", "/run/cri")
            names(answer, "the rules were changed", "--dport 9000", "the init container's arguments, from the runtime")
            assert "s3cret" not in answer.output


def test_a_bundle(pod: Pod, tmp_path: Path) -> None:
    pod.apply(USUAL)
    path = tmp_path / "bundle.tar.gz"
    with running(pod, tcp="15001 15006"):
        assert diagnose(pod, "--bundle", str(path)).code == 0
        assert path.stat().st_mode & 0o777 == 0o600
        again = diagnose(pod, "--bundle", str(path))
        assert (again.code, "--bundle" in again.errors) == (255, True)
    with tarfile.open(path) as archive:
        files = {each.name: archive.extractfile(each).read().decode() for each in archive}  # type: ignore[union-attr]
    assert "-A ISTIO_OUTPUT -j ISTIO_REDIRECT" in files["diagnose/rules.ipv4.txt"]
    assert "envoy (process" in files["diagnose/processes.txt"]
    assert json.loads(files["diagnose/diagnosis.json"])["healthy"] is True


def test_a_bundle_has_no_secrets() -> None:
    dump = {
        "configs": [
            {"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": ["s3cret"]},
            {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": "s3cret"}},
            {"clusters": [{"name": "kept", "tls": {"private_key": {"inline_bytes": "s3cret"}, "Token": "s3cret"}}]},
        ]
    }
    text = json.dumps(diagnose_bundle.redacted(dump))
    assert "s3cret" not in text
    assert "kept" in text
