"""The xtables lock against the flock program and iptables itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from integration.kit.namespace import Namespace
from integration.kit.program import completed, standing
from istio_init.errors import KernelError
from istio_init.errors_rare import Locked
from istio_init.kernel.host.lock import DIRECTORY, NAMESPACE_PATH, XtablesLock, namespace_lock
from istio_init.kernel.host.logfile import make_directory

# iptables' exit status where somebody else holds the lock.
RESOURCE_PROBLEM = 4


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a lock file may be made."""
    return str(tmp_path / "xtables.lock")


@pytest.fixture
def readonly(tmp_path: Path) -> Iterator[Path]:
    """A file system that can only be read, with one empty file, there.lock."""
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        (tmp_path / "there.lock").touch()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


class Holder:
    """Another process, cat by name, that holds a lock from `with` until it is let go."""

    def __init__(self, path: str | Path, *within: str) -> None:
        command = [*within, "flock", "--no-fork", str(path), "cat"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin
        assert self.process.stdout
        print("held", file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self) -> None:
        """End the process."""
        self.process.communicate()


def is_free(path: str | Path, *within: str) -> bool:
    """Whether the flock program gets the lock at once."""
    return subprocess.run([*within, "flock", "--nonblock", str(path), "true"], check=False).returncode == 0


def test_it_excludes_others_from_with_to_its_end(path: str) -> None:
    with XtablesLock(0, path):
        assert not is_free(path)
    assert is_free(path)


def test_an_error_inside_releases_it(path: str) -> None:
    with pytest.raises(ZeroDivisionError), XtablesLock(0, path):
        raise ZeroDivisionError
    assert is_free(path)


def test_a_file_that_is_made_is_for_its_owner_alone(path: str) -> None:
    with XtablesLock(0, path):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600


def test_iptables_honours_it(namespace: Namespace) -> None:
    with XtablesLock(0, namespace.lock):
        refused = namespace.completed("iptables-legacy", "-w", "1", "-t", "raw", "-S")
    assert refused.returncode == RESOURCE_PROBLEM
    assert "xtables lock" in refused.stderr
    namespace.run("iptables-legacy", "-w", "1", "-t", "raw", "-S")


def test_who_holds_it_is_said_once_and_then_an_error(path: str) -> None:
    report: list[str] = []
    with Holder(path) as holder:
        who = f"pid {holder.process.pid} (cat)"
        with pytest.raises(Locked) as refusal, XtablesLock(0.2, path, waiting=report.append):
            pass
    assert report == [f"waiting up to 0.2 s for {path}, held by {who}"]
    assert str(refusal.value).startswith(f"{path}: held by {who} for more than 0.2 s: ")
    assert "--wait" in str(refusal.value)


def test_it_is_had_as_soon_as_it_is_free(path: str) -> None:
    with Holder(path) as holder, XtablesLock(60, path, waiting=lambda _: holder.let_go()):
        assert not is_free(path)


def test_without_patience_nobody_is_told(path: str) -> None:
    report: list[str] = []
    with Holder(path), pytest.raises(Locked), XtablesLock(0, path, waiting=report.append):
        pass
    assert report == []


@pytest.mark.parametrize("name", ["new.lock", "there.lock", "no/such/directory/xtables.lock"])
def test_where_no_file_can_be_made_the_namespace_is_locked(namespace: Namespace, readonly: Path, name: str) -> None:
    path = str(readonly / name)

    def excluded() -> bool:
        with XtablesLock(0, path):
            return not is_free(NAMESPACE_PATH)

    assert namespace.inside(excluded)
    with Holder(NAMESPACE_PATH, "ip", "netns", "exec", namespace.name), pytest.raises(Locked, match=NAMESPACE_PATH):
        namespace.inside(excluded)


def test_a_file_that_can_only_be_read_is_locked_too(readonly: Path) -> None:
    path = str(readonly / "there.lock")
    with XtablesLock(0, path):
        assert not is_free(path)
    with Holder(path):
        with pytest.raises(Locked, match=path), XtablesLock(0, path):
            pass
        assert is_free(NAMESPACE_PATH)


def test_namespaces_are_locked_each_for_itself(namespace: Namespace) -> None:
    def locked() -> bool:
        with XtablesLock(0, namespace=True):
            return not is_free(namespace_lock())

    with Namespace() as other:
        path = other.inside(namespace_lock)
        make_directory(DIRECTORY)
        with Holder(path):
            assert namespace.inside(locked)
            with pytest.raises(Locked, match="cat"):
                other.inside(locked)
        assert other.inside(locked)
        assert not Path(path).exists()


def test_a_pod_can_not_take_its_namespaces_lock(namespace: Namespace) -> None:
    """Its processes can lock the namespace's own file, and can't open that of the lock."""

    def locked() -> str:
        with XtablesLock(0, namespace=True):
            path = namespace_lock()
            command = ["setpriv", "--reuid", "1000", "--clear-groups", "flock", "--nonblock", path, "true"]
            refused = subprocess.run(command, capture_output=True, text=True, check=False)
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
            assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
            return refused.stderr

    with Holder(NAMESPACE_PATH, "ip", "netns", "exec", namespace.name, "setpriv", "--reuid", "1000", "--clear-groups"):
        assert "Permission denied" in namespace.inside(locked)


def test_where_no_file_of_the_namespace_can_be_made_a_run_is_refused(namespace: Namespace) -> None:
    """What could be locked instead, a process of the pod could hold for ever."""
    prefix = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o ro none /run; exec "$@"', "-")
    before = standing(namespace)
    done = completed(namespace, "-u", "1337", "-i", "*", "--cni-mode", prefix=prefix)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{DIRECTORY}/" in last
    assert last.endswith(
        "Read-only file system; make /run writable for root, or leave out --cni-mode to lock the whole node; "
        "nothing was changed"
    )
    assert standing(namespace) == before


def test_many_take_turns_at_a_lock_file_that_is_removed_each_time(namespace: Namespace, tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")

    def add() -> None:
        for _ in range(20):
            with XtablesLock(60, namespace=True):
                count.write_text(str(int(count.read_text()) + 1))

    children = []
    for _ in range(5):
        child = os.fork()
        if not child:
            code = 1
            try:
                namespace.enter()
                add()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    assert count.read_text() == "100"
    assert not Path(namespace.inside(namespace_lock)).exists()


def test_a_flock_that_is_forbidden_is_an_error(path: str) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from istio_init.kernel.host.lock import XtablesLock\n"
    code += "from istio_init.errors import KernelError\n"
    code += "try:\n XtablesLock(0, sys.argv[2]).__enter__()\nexcept KernelError as error: print(error)"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=EPERM"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, sys.executable, "-c", code, root, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: can't be locked: Operation not permitted; a sandbox may forbid flock")


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"Is a directory.*XTABLES_LOCKFILE"), XtablesLock(0, str(tmp_path)):
        pass
