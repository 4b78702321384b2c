"""Running and timing other programs, each in a network namespace that nothing has touched yet."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000
# <linux/sockios.h>, <linux/if.h>.
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

# Forks, execs and reports the peak memory of what it ran. A program started by posix_spawn would count this
# benchmark's own memory as its own: the kernel carries the peak over an exec (exec_mmap).
WEIGH = """
import os, sys
child = os.fork()
if not child:
    try:
        os.execv(sys.argv[1], sys.argv[1:])
    finally:
        os._exit(127)
_, status, usage = os.wait4(child, 0)
os.write(3, b"%d" % usage.ru_maxrss)
os._exit(os.waitstatus_to_exitcode(status))
"""

# Counts a program's instructions outside of the kernel, and says the number on standard error.
COUNTING = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
_COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Command:
    """A program by its full path, its arguments, the file that is its standard input, and further variables."""

    argv: tuple[str, ...]
    stdin: str = os.devnull
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Contender:
    """What is timed: commands one after another, their times added up; `before` prepares the namespace, untimed.

    Who works from `outside` is told the namespace's path, as a CNI plugin is: $CNI_NETNS.
    """

    name: str
    commands: tuple[Command, ...]
    before: tuple[Command, ...] = ()
    what: str = ""
    outside: bool = False


@dataclass(slots=True)
class Measured:
    """A contender's runs, one of each round: seconds on the clock, seconds of processor time, and peak kilobytes.

    `instructions` are those of one run outside of the kernel; 0 where they were not counted.
    """

    contender: Contender
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    instructions: int = 0


def counted(log: str) -> int:
    """The instructions that COUNTING says; ValueError where it says nothing of the kind."""
    match = _COUNTED.search(log)
    if not match:
        raise ValueError(f"valgrind did not count: {log}")
    return int(match[1].replace(",", ""))


class Failed(Exception):
    """A program did not end well; the text says which and what it wrote."""


class Laboratory:
    """Where programs are run, from `with` to its end: fresh network namespaces, and an xtables lock of our own.

    The calling thread moves from namespace to namespace, and back into its own at the end.
    """

    def __init__(self, python: str) -> None:
        self._python = python
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._away = False
        self._used: list[int] = []
        self._directory = tempfile.TemporaryDirectory(prefix="istio-init-bench-")
        self.path = Path(self._directory.name)
        self._stderr = str(self.path / "stderr")
        self._environment = {"PATH": os.environ["PATH"], "XTABLES_LOCKFILE": str(self.path / "xtables.lock")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._away:
            self._enter(self._home)
        self.forget()
        os.close(self._home)
        self._directory.cleanup()

    def run(self, contender: Contender) -> tuple[float, float]:
        """Seconds on the clock and of processor time that one run takes, in a namespace of its own."""
        self._fresh(contender)
        wall = cpu = 0.0
        for command in contender.commands:
            seconds, usage = self._timed(command)
            wall += seconds
            cpu += usage
        return wall, cpu

    def weigh(self, contender: Contender) -> int:
        """The peak memory in kilobytes of the largest process of one run, in a namespace of its own."""
        self._fresh(contender)
        peak = 0
        for command in contender.commands:
            reading, writing = os.pipe()
            argv = (self._python, "-I", "-S", "-c", WEIGH, *command.argv)
            weighing = Command(argv, command.stdin, command.variables)
            self._timed(weighing, extra=[(os.POSIX_SPAWN_DUP2, writing, 3)])
            os.close(writing)
            with os.fdopen(reading) as pipe:
                peak = max(peak, int(pipe.read()))
        return peak

    def count(self, contender: Contender) -> int:
        """The instructions of one run outside of the kernel, much the same each time; 0 without valgrind."""
        valgrind = shutil.which(COUNTING[0])
        if valgrind is None:
            return 0
        self._fresh(contender)
        instructions = 0
        for command in contender.commands:
            self._timed(Command((valgrind, *COUNTING[1:], *command.argv), command.stdin, command.variables))
            instructions += counted(Path(self._stderr).read_text(errors="replace"))
        return instructions

    def forget(self) -> None:
        """Let go of the namespaces used so far. The kernel takes them apart on the side, so: between the rounds."""
        for descriptor in self._used:
            os.close(descriptor)
        if self._used:
            time.sleep(0.1)
        self._used.clear()

    def _fresh(self, contender: Contender) -> None:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace can be made")
        self._away = True
        self._used.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
        if contender.outside:
            self._enter(self._home)
        for command in contender.before:
            self._timed(command)

    def _enter(self, descriptor: int) -> None:
        if _libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "the own network namespace can't be entered")

    def _timed(self, command: Command, extra: list[tuple[int, int, int]] | None = None) -> tuple[float, float]:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, command.stdin, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, self._stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            *(extra or []),
        ]
        where = {"CNI_NETNS": f"/proc/{os.getpid()}/fd/{self._used[-1]}"}
        environment = {**self._environment, **where, **dict(command.variables)}
        begin = time.perf_counter()
        try:
            child = os.posix_spawn(command.argv[0], command.argv, environment, file_actions=actions)
        except OSError as error:
            raise Failed(f"{command.argv[0]}: {error.strerror}") from error
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - begin
        if status:
            errors = Path(self._stderr).read_text(errors="replace").strip()
            code = os.waitstatus_to_exitcode(status)
            raise Failed(f"{' '.join(command.argv)[:300]}: exit {code}: {errors[-2000:]}")
        return seconds, usage.ru_utime + usage.ru_stime
