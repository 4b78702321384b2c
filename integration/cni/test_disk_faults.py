"""What a disk refuses is an error of one line, and the network is the old one or the new one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from integration.cni.test_installation import FLANNEL, ROOT, Host, host
from integration.kit.program import VERBS
from istio_init.cni.node.conflist import PLUGIN
from istio_init.kernel.host.files import PARTIAL, UNREAD
from tests.cni.networks import SINGLE

if TYPE_CHECKING:
    import pathlib

__all__ = ["host"]  # the fixture

NAMES = ("10-flannel.conflist", "10-gcp-ptp.conf", "10-gcp-ptp.conflist", "10-gcp-ptp.conf.before-istio-init")
# Each call that changes something, and what the disk may answer; EPERM is root without CAP_CHOWN, or a sandbox.
FAULTS = [
    ("write", "ENOSPC"), ("write", "EIO"), ("fsync", "EIO"), ("fchmod", "EPERM"), ("fchown", "EPERM"),
    ("flock", "ENOLCK"), ("flock", "EPERM"), ("renameat2", "EIO"), ("renameat2", "ENOSPC"), ("rename", "EROFS"),
    ("unlink", "EIO"), ("openat", "EIO"), ("getdents64", "EIO"), ("read", "EIO"),
]  # fmt: skip


def paths(host: Host) -> list[pathlib.Path]:
    """All that the verbs touch."""
    files = [*(host.networks / name for name in NAMES), host.program]
    partial = [path.with_name(f"{PARTIAL}{path.name}{UNREAD}") for path in files]
    return [host.networks, host.programs, host.source, *files, *partial]


def run(host: Host, verb: str, inject: str) -> subprocess.CompletedProcess[str]:
    """A verb in which the call that is named fails wherever it is about one of these paths."""
    watched = [word for path in paths(host) for word in ("-P", str(path))]
    places = [f"--cni-net-dir={host.networks}", f"--cni-bin-dir={host.programs}"]
    words = [*VERBS, "cni", verb, *places, *([f"--plugin={host.source}"] if verb == "install" else [])]
    command = ["strace", "-f", "-qq", "-o", str(host.directory / "calls"), *watched, "-e", f"inject={inject}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["install", "uninstall"])
@pytest.mark.parametrize("single", [False, True], ids=["a list", "a single plugin"])
@pytest.mark.parametrize(("call", "error"), FAULTS, ids="-".join)
def test_it_is_one_line(host: Host, verb: str, single: bool, call: str, error: str) -> None:
    path = host.network(*(("10-gcp-ptp.conf", SINGLE) if single else ("10-flannel.conflist", FLANNEL)))
    subprocess.run(["chown", "1000", path], check=True)  # whose owner the new one has to have, too
    before = host.files()
    if verb == "uninstall":
        host.do("install")
    done = run(host, verb, f"{call}:error={error}")
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1}
    if done.returncode:
        [line] = done.stderr.splitlines()
        assert str(host.directory) in line
    (host.directory / "calls").unlink()
    host.do("uninstall")
    assert {name: text for name, text in host.files().items() if PLUGIN not in name} == before
