"""Network namespaces for tests: made under a unique name, entered in several ways, deleted at the end."""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import subprocess
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from integration.kit.threads import in_thread

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace with lo up, from `with` to its end.

    Commands run in it get an xtables lock of its own (XTABLES_LOCKFILE at `lock`), so that tests which run
    at the same time don't wait for each other.
    """

    def __init__(self) -> None:
        self.name = f"istio-init-{os.getpid()}-{next(_numbers)}"
        self.path = f"/var/run/netns/{self.name}"
        self.lock = f"/run/{self.name}.lock"
        self.environment = {**os.environ, "XTABLES_LOCKFILE": self.lock}

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
        if os.path.exists(self.lock):
            os.unlink(self.lock)

    def completed(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """The command, run inside with `text` as its standard input, whatever its exit status is."""
        inside = ["ip", "netns", "exec", self.name, *command]
        return subprocess.run(inside, input=text, env=self.environment, capture_output=True, text=True, check=False)

    def run(self, *command: str, text: str | None = None) -> str:
        """The standard output of a command run inside; AssertionError with its standard error where it fails."""
        done = self.completed(*command, text=text)
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command left running inside, its output in pipes; the caller ends it."""
        inside = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(inside, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def enter(self) -> None:
        """Move the calling thread into the namespace, for good."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.path}")
        finally:
            os.close(descriptor)

    def inside(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in a thread inside; what it raises is raised here."""

        def work() -> T:
            self.enter()
            return function()

        return in_thread(work)

    def forked(self, function: Callable[[], T]) -> T:
        """The same in a forked child, which may drop capabilities or end itself; results and errors are pickled."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _report(writing, self.enter, function)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            report = pipe.read()
        _, status = os.waitpid(child, 0)
        assert report, f"the child ended with {os.waitstatus_to_exitcode(status)} and said nothing"
        result, error = pickle.loads(report)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


class Foreign(Namespace):
    """One that belongs to a user namespace of its own, as a pod's with hostUsers: false; its uid 0 is FIRST here."""

    FIRST, COUNT = 100_000, 65_536

    def __enter__(self) -> Self:
        with subprocess.Popen(
            ["unshare", "--user", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as owner:
            # By the time it answers it has moved.
            assert owner.stdin
            assert owner.stdout
            print("there", file=owner.stdin, flush=True)
            assert owner.stdout.readline() == "there\n"
            for kind in ("uid", "gid"):
                with open(f"/proc/{owner.pid}/{kind}_map", "w", encoding="ascii") as ids:
                    ids.write(f"0 {self.FIRST} {self.COUNT}")
            subprocess.run(["ip", "netns", "attach", self.name, str(owner.pid)], check=True)
        self.run("ip", "link", "set", "lo", "up")
        return self


def _report(writing: int, enter: Callable[[], None], function: Callable[[], object]) -> None:
    """Call both in a forked child, write what came of it, and end the child without any clean-up of the parent's."""
    try:
        enter()
        report = pickle.dumps((function(), None))
    except BaseException as error:  # noqa: BLE001 (carried to the parent, whatever it is)
        report = pickle.dumps((None, error))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(report)
    os._exit(0)
