"""istio-iptables as the helper of a CNI plugin: from the node, for a pod's namespace by its path, many at a time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.kernel.test_lock import Holder
from integration.kit import program
from integration.kit.endpoints import Arrival, User, connect, listener, opened
from integration.kit.fresh import by_path, standing
from integration.kit.namespace import Foreign, Namespace
from istio_init.model.rules import IPV4

CAPTURE = shlex.split("--cni-mode -i '*' -b '*' -d 15020 -u 1337 -g 1337")
EVERYTHING = [*CAPTURE, "-m", "TPROXY", "--redirect-dns", "--enable-ipv6"]
BACKENDS = {"legacy": [], "nft": ["--force-iptables-binary", "nft"], "native": ["--native-nftables"]}
MANY = 200


def start(path: str, *argv: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    """A run begun on the node, for the namespace at a path."""
    # Without site, as the image runs it: that asks for the home directory of the present user.
    command = [*prefix, sys.executable, "-S", "-m", "istio_init", *argv, "--network-namespace", path]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(program.ROOT), **env}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(run: subprocess.Popen[str], code: int = 0) -> str:
    """What a run logged that was to end with this exit code; on standard output it says nothing."""
    output, log = run.communicate()
    assert run.returncode == code, log
    assert output == ""
    assert "Traceback" not in log
    return log


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    """A namespace of another user namespace."""
    with Foreign() as fresh:
        yield fresh


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pod_in_a_user_namespace_gets_the_same(foreign: Foreign, namespace: Namespace, backend: str) -> None:
    argv = [*EVERYTHING, *BACKENDS[backend]]
    before = everything(foreign)
    done(start(namespace.path, *argv))
    assert "applied" in done(start(foreign.path, *argv))
    assert everything(foreign) == everything(namespace) != before
    assert "in place" in done(start(foreign.path, *argv))
    assert "cleaned up" in done(start(foreign.path, "--cni-mode", "--cleanup-only", *BACKENDS[backend]))
    done(start(namespace.path, "--cni-mode", "--cleanup-only", *BACKENDS[backend]))
    assert everything(foreign) == everything(namespace)


def everything(namespace: Namespace) -> object:
    """All that a run may change, in whichever tables."""
    ruleset = namespace.run("nft", "--stateless", "list", "ruleset")
    return program.standing(namespace), ruleset


def test_whose_packets_are_the_proxys_is_asked_in_the_pods_user_namespace(foreign: Foreign) -> None:
    """By what the proxy itself dials: its own ids are those inside, and the node's of the same number are nobody."""
    done(start(foreign.path, *CAPTURE))
    foreign.run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    to = ("192.0.2.1", 80)
    listeners = {name: listener(foreign, IPV4, ("0.0.0.0", port)) for name, port in (("app", 80), ("envoy", 15006))}
    try:
        for uid, reached in ((foreign.FIRST + 1337, "envoy"), (foreign.FIRST + 1000, "app"), (1337, "app")):
            arrival: Arrival = connect(opened(foreign, IPV4, 1, User(uid, uid)), to, listeners)
            assert arrival.at == reached, uid
    finally:
        for each in listeners.values():
            each.close()


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_an_id_that_the_pods_user_namespace_lacks_is_said(foreign: Foreign, backend: str) -> None:
    log = done(start(foreign.path, "--cni-mode", "-i", "*", "-u", "70000", *BACKENDS[backend]), 1)
    assert ": uid 70000 " in log.splitlines()[-1]
    assert "not mapped in the user namespace" in log.splitlines()[-1]
    assert "ISTIO" not in str(program.all_saved(foreign))


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_a_rule_for_another_user_namespace_from_within_is_said(foreign: Foreign, backend: str) -> None:
    """Who is in the network namespace but not in the user namespace that it belongs to."""
    message = program.refuse(foreign, *CAPTURE, *BACKENDS[backend])
    assert "--network-namespace /proc/self/ns/net" in message
    done(start("/proc/self/ns/net", *CAPTURE, prefix=("ip", "netns", "exec", foreign.name)))


def test_nobody_else_is_asked(namespace: Namespace, tmp_path: Path) -> None:
    """Names are looked up in two files, whatever nsswitch.conf says; the node's name servers are not the pod's."""
    calls = tmp_path / "calls"
    strace = ("strace", "-f", "-qq", "-o", str(calls), "-e", "trace=openat,open,connect,execve")
    done(start(namespace.path, *CAPTURE, "--redirect-dns", "-u", "root", "-g", "root", prefix=strace))
    text = calls.read_text()
    assert '"/etc/passwd"' in text
    assert '"/etc/group"' in text
    assert [word for word in ("nss", "resolv.conf", "AF_UNIX", "AF_INET") if word in text] == []
    assert text.count("execve(") == 1
    assert "-p udp -m udp --dport 53 -j REDIRECT" in program.saved(namespace, IPV4)["nat"]


def test_hundreds_at_once_while_the_nodes_lock_is_held(tmp_path: Path) -> None:
    """Each pod has rules of its own, and waits for nobody."""
    lock = tmp_path / "xtables.lock"
    with by_path(MANY) as paths, Holder(lock):
        argv = [*CAPTURE, "--wait", "0"]
        runs = [
            start(path, *argv, "-p", str(20_000 + number), XTABLES_LOCKFILE=str(lock))
            for number, path in enumerate(paths)
        ]
        logs = [done(run) for run in runs]
        assert all("applied" in log for log in logs)
        for number, path in enumerate(paths):
            assert f"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {20_000 + number}\n" in standing(path)
