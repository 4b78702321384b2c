"""Small limits, file systems that are missing, and signals at the start: an error in words, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

from integration.kit.fault_matrix import prepare, scenarios, snapshot
from integration.kit.namespace import Namespace
from integration.kit.program import standing
from scripts.benchmark.contenders import RULES
from scripts.benchmark.installation import Variant, install

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = {"legacy": (), "nft": ("--force-iptables-binary", "nft"), "native": ("--native-nftables",)}
WITHOUT = 'umount -l "$1"; mount -t tmpfs none "$1"; shift; exec "$@"'


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program as the image holds it."""
    return install(sys.executable, tmp_path_factory.mktemp("image"), Variant())


def run(
    namespace: Namespace, command: str, *flags: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    program = ["ip", "netns", "exec", namespace.name, *prefix, sys.executable, "-ISXutf8", command]
    environment = {"PATH": os.environ["PATH"], "XTABLES_LOCKFILE": namespace.lock}
    return subprocess.run([*program, *flags], env=environment, capture_output=True, text=True, check=False)


def whole_or_nothing(namespace: Namespace, done: subprocess.CompletedProcess[str], before: object) -> None:
    """A run that ends well, or an error in one line after which everything is as before."""
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert len([line for line in done.stderr.splitlines() if "\terror\t" in line or "\t" not in line]) == 1, (
            done.stderr
        )
        assert standing(namespace) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [4, 5, 6, 7, 8, 10, 11, 12])
def test_few_open_files(namespace: Namespace, command: str, backend: str, limit: int) -> None:
    before = standing(namespace)
    prefix = ("prlimit", f"--nofile={limit}:{limit}")
    done = run(namespace, command, *RULES["tproxy"], *BACKENDS[backend], prefix=prefix)
    whole_or_nothing(namespace, done, before)
    if limit < 8:
        assert done.returncode == 1
        assert "raise the limit" in done.stderr


@cache
def bare() -> int:
    """The bytes of address space that Python itself takes, which differ by 3 MB from 3.11 to 3.13."""
    code = "print(next(line for line in open('/proc/self/status') if line.startswith('VmPeak')))"
    done = subprocess.run([sys.executable, "-IS", "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[1]) << 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("megabytes", [3, 4, 5, 7, 13, 29])
def test_little_memory(namespace: Namespace, command: str, backend: str, megabytes: int) -> None:
    before = standing(namespace)
    prefix = ("prlimit", f"--as={bare() + (megabytes << 20)}")
    whole_or_nothing(namespace, run(namespace, command, *RULES["tproxy"], *BACKENDS[backend], prefix=prefix), before)


@pytest.mark.parametrize("megabytes", [3, 4, 5, 5.5, 6, 7, 9, 10, 11, 12, 13, 15])
def test_little_memory_for_a_move(namespace: Namespace, command: str, megabytes: float) -> None:
    """The limit is reached at one moment or another of writing two kinds of tables; undoing needs memory, too."""
    [scenario] = [each for each in scenarios() if each.name == "legacy to native: TPROXY"]
    before = prepare(namespace, scenario)
    limit = bare() + int(megabytes * (1 << 20))
    done = run(namespace, command, *scenario.run, prefix=("prlimit", f"--as={limit}"))
    assert "Traceback" not in done.stderr
    after = snapshot(namespace)
    if done.returncode:
        assert after == before, done.stderr
        ends = ("nothing was changed", "the namespace is as before", "make /usr readable")  # the last: while it starts
        assert done.stderr.splitlines()[-1].endswith(ends)
    else:
        assert not any("legacy" in place for place in after[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", ["/proc", "/sys"])
@pytest.mark.parametrize("flags", [(), ("--cni-mode",), ("--cleanup-only",)], ids=" ".join)
def test_no_proc_and_no_sys(
    namespace: Namespace, command: str, backend: str, missing: str, flags: tuple[str, ...]
) -> None:
    before = standing(namespace)
    prefix = ("unshare", "-m", "sh", "-c", WITHOUT, "-", missing)
    done = run(namespace, command, *RULES["tproxy"], *BACKENDS[backend], *flags, prefix=prefix)
    whole_or_nothing(namespace, done, before)
    assert (done.returncode == 1) == (missing == "/proc")
    if done.returncode:
        assert "mount /proc" in done.stderr


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_it_starts_ends_it_at_once(
    namespace: Namespace, command: str, signal: str, code: int, tmp_path: Path
) -> None:
    """At each part of the program that is read, until the run itself handles it and undoes what it has done."""
    log = tmp_path / "calls"
    watch = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=read,openat")
    with Namespace() as other:
        assert run(other, command, *RULES["redirect"], prefix=watch).returncode == 0
    calls = [call for call in log.read_text().splitlines() if "read(" in call or "istio_init.bundle" in call]
    # Behind the read of the importer, which is what handles signals from then on.
    first = next(number for number, call in enumerate(calls, 2) if "istio_init.bundle" in call)
    assert len(calls) > first
    codes = []
    for number in range(first, len(calls)):
        fault = ("-e", f"inject=read:signal={signal}:when={number}")
        done = run(namespace, command, *RULES["redirect"], prefix=(*watch, *fault))
        if f"--- {signal} " not in log.read_text():
            # It read less often than the run that was counted, and was left alone.
            assert done.returncode == 0, done.stderr
            run(namespace, command, "--cleanup-only")
            continue
        assert "Traceback" not in done.stderr
        assert "KeyboardInterrupt" not in done.stderr
        assert done.returncode == code or "ended by signal" in done.stderr, done.stderr
        assert "ISTIO" not in namespace.run("iptables-legacy-save")
        codes.append(done.returncode)
    assert code in codes
