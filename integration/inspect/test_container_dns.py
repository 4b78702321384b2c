"""DNS capture of a running container: its own nameservers count, and no path of its leads out of its root."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.kit.asking import ask
from integration.kit.namespace import Namespace
from integration.kit.pod import applied, options_of

CAPTURE = ("-u1337", "--istio-inbound-ports=*", "--redirect-dns")
# A process whose root is a directory, as a container's is; its standard output says when.
CONTAINED = "import os, signal, sys; os.chroot(sys.argv[1]); print(flush=True); signal.pause()"


@contextlib.contextmanager
def contained(namespace: Namespace, root: Path) -> Iterator[str]:
    """The process id of a container with this root, in a network namespace."""
    process = namespace.start(sys.executable, "-c", CONTAINED, str(root))
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield str(process.pid)
    finally:
        process.kill()
        process.communicate()


def capture(namespace: Namespace) -> None:
    """Apply the rules of a pod with one nameserver."""
    options = options_of(f"{' '.join(CAPTURE)} --dns-servers=10.96.0.10 --force-iptables-binary=legacy")
    namespace.inside(lambda: applied(options))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a container."""
    (tmp_path / "etc").mkdir()
    return tmp_path


def test_the_containers_own_nameservers_are_compared(namespace: Namespace, root: Path) -> None:
    (root / "etc/resolv.conf").write_text("nameserver 10.96.0.10\n")
    capture(namespace)
    with contained(namespace, root) as pid, Namespace() as elsewhere:
        for verb in ("check", "plan", "show"):
            answer = ask(elsewhere, verb, *CAPTURE, "--pid", pid)
            assert (answer.errors, answer.output[:8], answer.code) == ("", "in place", 0)
        assert ask(elsewhere, "explain", *CAPTURE, "--pid", pid, "--outbound", "--to", "10.96.0.10:53").errors == ""
        # Named servers win.
        assert ask(elsewhere, "check", *CAPTURE, "--pid", pid, "--dns-servers=10.96.0.11").code == 3


def test_a_link_leads_within_the_container(namespace: Namespace, root: Path, tmp_path: Path) -> None:
    """The node has the same path with other nameservers."""
    node = tmp_path / "node.conf"
    node.write_text("nameserver 192.0.2.53\n")
    within = root / node.relative_to("/")
    within.parent.mkdir(parents=True)
    within.write_text("nameserver 10.96.0.10\n")
    (root / "etc/resolv.conf").symlink_to(node)
    capture(namespace)
    with contained(namespace, root) as pid, Namespace() as elsewhere:
        assert ask(elsewhere, "check", *CAPTURE, "--pid", pid).code == 0


@pytest.mark.parametrize("kind", ["absent", "empty", "pipe", "magic"])
def test_without_nameservers_they_have_to_be_named(namespace: Namespace, root: Path, kind: str) -> None:
    path = root / "etc/resolv.conf"
    if kind == "empty":
        path.write_text("search example\n")
    elif kind == "pipe":
        subprocess.run(["mkfifo", str(path)], check=True)
    elif kind == "magic":
        path.symlink_to("/proc/self/fd/0")
    with contained(namespace, root) as pid, Namespace() as elsewhere:
        answer = ask(elsewhere, "check", *CAPTURE, "--pid", pid)
    assert (answer.code, answer.output) == (1, "")
    assert answer.errors.startswith(f"istio-init: process {pid}: /etc/resolv.conf: ")
    assert answer.errors.endswith("name them: --dns-servers\n")
    assert answer.errors.count("\n") == 1
