"""One call by a name, and through the routes of the pod's own Envoy."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.envoy import istio_config
from integration.envoy.test_verbs import admin_port
from integration.envoy.world import ARTICLE, World
from integration.inspect.diagnose.planting import CAPTURING, FAULT, USUAL, diagnose, names, running
from integration.kit.asking import Answer, ask
from integration.kit.pod import Pod

PLAIN = "http://ratings:9080/"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A pod with a real Envoy that has Istio's configuration, and its admin interface where Istio has it."""
    with World("REDIRECT", f"{ARTICLE} -x ''") as running_world, admin_port(running_world):
        yield running_world


def diagnosis(world: World, *words: str) -> Answer:
    return ask(world.pod.namespace, "diagnose", "--netns", world.pod.namespace.path, *words)


def test_a_request_through_the_sidecars_routes(world: World) -> None:
    answer = diagnosis(world, "--url", PLAIN)
    text = " ".join(answer.output.split())
    assert answer.code == 0, answer.output
    assert "Note: ratings is 10.96.0." in text
    assert "by the sidecar's configuration" in text
    assert "the call reaches 10.99.0.1:9080 by veth0" in text
    (path,) = diagnosis(world, "--url", PLAIN, "--output", "json").document["sidecar"][0]["paths"]
    assert (path["stages"][1]["envoy"]["route"], path["end"]) == ("rest", "wire")


def test_a_name_without_a_request(world: World) -> None:
    answer = diagnosis(world, "--to", "ratings:9080")
    assert answer.code == 0, answer.output
    assert "ratings is 10.96.0." in answer.output


def test_a_request_that_comes_in(world: World) -> None:
    answer = diagnosis(world, "--from", "203.0.113.9", "--url", "http://reviews:9080/")
    assert answer.code == 0, answer.output
    assert "the app at 10.77.0.2:9080" in " ".join(answer.output.split())


def test_what_the_sidecar_does_not_know(world: World) -> None:
    answer = diagnosis(world, "--url", "http://203.0.113.9:9080/")
    assert answer.code == 0, answer.output
    assert "PassthroughCluster" in answer.output


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://203.0.113.9:9080/", ("the sidecar answers the call itself, with 502", "block_all")),
        ("http://203.0.113.9:1234/", ("the sidecar closes the call", "BlackHoleCluster")),
    ],
)
def test_registry_only(url: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """The configuration in a file, as somebody was sent it."""
    dump = istio_config.dump("REDIRECT", registry_only=True)
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    with Pod("ipv4") as pod:
        pod.apply(USUAL)
        with running(pod, tcp=CAPTURING):
            names(diagnose(pod, "--url", url, "--envoy", str(tmp_path / "dump.json")), *words)


class NameServer:
    """A server of DNS in the peer that knows one name, and an answer to everything else that there is no such name."""

    def __init__(self, pod: Pod, name: str, address: str) -> None:
        self.question = b"".join(bytes([len(each)]) + each.encode() for each in name.split(".")) + b"\0"
        self.address = socket.inet_aton(address)
        self.socket = pod.peer.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.bind(("10.99.0.1", 53))
        self.questions: list[bytes] = []

    def serve(self) -> None:
        """Answer until an empty datagram comes."""
        while True:
            query, client = self.socket.recvfrom(512)
            if not query:
                return
            self.questions.append(query[12:-4])
            has_address = query[12:-4] == self.question and query[-3] == 1
            head = query[:2] + (b"\x81\x80" if query[12:-4] == self.question else b"\x81\x83") + b"\0\1"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + self.address if has_address else b""
            self.socket.sendto(head + (b"\0\1" if has_address else b"\0\0") + bytes(4) + query[12:] + record, client)


@contextlib.contextmanager
def name_server(pod: Pod, name: str, address: str) -> Iterator[NameServer]:
    server = NameServer(pod, name, address)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        with pod.peer.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as ending:
            ending.sendto(b"", ("10.99.0.1", 53))
        thread.join()
        server.socket.close()


@pytest.fixture
def etc(pod: Pod) -> Iterator[Callable[[str, str], None]]:
    """Writes a file that processes of the pod see in /etc (ip-netns(8))."""
    directory = Path("/etc/netns") / pod.namespace.name
    directory.mkdir(parents=True)

    def write(name: str, text: str) -> None:
        (directory / name).write_text(text)

    yield write
    shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def test_names_as_the_app_looks_them_up(pod: Pod, etc: Callable[[str, str], None]) -> None:
    pod.apply(f"{USUAL} -x 10.99.0.0/16")
    etc("hosts", "127.0.0.1 localhost\n10.99.0.1 database # a comment\n")
    etc("resolv.conf", "nameserver 10.99.0.1\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:5\n")
    with running(pod, tcp=CAPTURING), name_server(pod, "ratings.default.svc.cluster.local", "203.0.113.9") as server:
        names(
            diagnose(pod, "--to", "database:5432"), "-d 10.99.0.0/16 -j RETURN", "database is 10.99.0.1, by the pod's"
        )
        answer = diagnose(pod, "--to", "ratings:9080")
        assert answer.code == 0, answer.output
        assert "ratings is 203.0.113.9, by DNS (10.99.0.1)" in answer.output
        assert server.questions == [server.question]
        unknown = diagnose(pod, "--to", "nowhere:80")
        assert unknown.code == FAULT
        assert "'nowhere': can't be looked up in the pod: 10.99.0.1 has no address for it" in " ".join(
            unknown.output.split()
        )


def test_a_name_that_nothing_is_known_of(pod: Pod) -> None:
    pod.apply(USUAL)
    with running(pod, tcp=CAPTURING):
        answer = diagnose(pod, "--to", "no-such-name.invalid.:80", "--output", "json")
        assert answer.code == 4
        assert "no-such-name.invalid" in answer.document["unknown"]
        bad = diagnose(pod, "--to", "a b:80")
        assert (bad.code, "--to" in bad.errors) == (255, True)


MANIFEST = """
kind: Pod
metadata: {name: reviews, annotations: {sidecar.istio.io/status: '{}'}}
spec:
  hostAliases: [{ip: 203.0.113.9, hostnames: [legacy.example]}]
  containers: [{name: istio-proxy, args: [proxy, sidecar], securityContext: {runAsUser: 1337}}, {name: reviews}]
"""


def test_a_manifests_host_aliases(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(MANIFEST)
    manifest = ["--from-pod", str(tmp_path / "pod.yaml")]
    answer = ask(pod.namespace, "diagnose", *manifest, "--to", "legacy.example:80")
    assert (answer.code, "by the pod's hostAliases" in answer.output) == (0, True)
    other = ask(pod.namespace, "diagnose", *manifest, "--to", "other.example:80")
    assert (other.code, "other.example" in other.output) == (4, True)
