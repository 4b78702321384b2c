"""What runs as the first process in the machine of machine.py: each case in turn, in a network namespace of its own.

The cases are read from /cases.json, and what came of each is a line of JSON on the second serial port.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, NamedTuple

from istio_init.cli import app, console, image_entry

CASES, REPORT = "/cases.json", "/dev/ttyS1"
CLONE_NEWNET = 0x40000000
# Imported above, once for all guests, though nothing here calls it.
PRELOADED = (console, app)
RESTART = 0x1234567  # <linux/reboot.h>; the machine ends where it would start anew
MOUNTS = (
    *(("proc", "/proc"), ("sysfs", "/sys"), ("cgroup2", "/sys/fs/cgroup")),
    *(("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")),
)
# Where a BPF file system may be mounted, and what is pinned there.
BPF = "/sys/fs/bpf"
PATIENCE = 20.0
LEGACY = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
# Everything that a run may change, by the tool that shows it; each only where what it asks is there, for asking
# would load it. Without counters: the kernel itself sends packets, such as IPv6's multicast reports.
LOOKS = {
    "ipv4": (LEGACY[0], "iptables-legacy-save", ""),
    "ipv6": (LEGACY[1], "ip6tables-legacy-save", ""),
    "nft": ("/sys/module/nf_tables", "nft --stateless list ruleset", ""),
    "routing 4": ("/proc/net", "ip -4 -batch -", "rule\nroute show table all\naddr show dev lo\n"),
    "routing 6": ("/proc/net", "ip -6 -batch -", "rule\nroute show table all\naddr show dev lo\n"),
}

_libc = ctypes.CDLL(None, use_errno=True)


class Case(NamedTuple):
    """Command lines that follow each other in one network namespace, each with the program's name before it.

    `without` are the modules that the kernel does not have, `loaded` those that it has before the first run. `prepare`
    are commands that come before the runs.
    """

    runs: list[list[str]]
    without: list[str]
    loaded: list[str]
    prepare: tuple[str, ...] = ()


def main() -> None:
    """Be the first process."""
    for kind, where in MOUNTS:
        os.makedirs(where, exist_ok=True)
        _checked(_libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None))
    with open(CASES, encoding="utf-8") as file:
        cases = [Case(*each) for each in json.load(file)]
    with open(REPORT, "w", encoding="utf-8") as report:
        for case in cases:
            begun = time.monotonic()
            line = json.dumps(outcomes(case))
            report.write(f"{line}\n")
            report.flush()
            print(f"{time.monotonic() - begun:.2f} s: {case}", flush=True)
    _libc.reboot(RESTART)


def outcomes(case: Case) -> list[Any]:
    """What came of each run of a case: exit code, standard output and error, what stood before and after."""
    unload()
    hidden = hide(case.without)
    for module in case.loaded:
        subprocess.run(["/sbin/modprobe", module], check=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _isolate()
            for command in case.prepare:
                subprocess.run(command.split(), check=True)
            done = consecutive(case.runs)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(done, pipe)
        except BaseException:  # noqa: BLE001 (the console is where it can be said)
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        contents = pipe.read()
    os.waitpid(child, 0)
    for path in hidden:
        os.rename(f"{path}.hidden", path)
    document: list[Any] = json.loads(contents)
    return document


def consecutive(runs: list[list[str]]) -> list[Any]:
    """What came of each run, the next of which finds what the one before has left."""
    done = []
    before = state()
    for run in runs:
        ended = completed(run)
        after = state()
        done.append([*ended, before, after])
        before = after
    return done


def completed(run: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error of a run, in a child that need not start Python anew."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                sys.argv = run
                image_entry.main()
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code if isinstance(end.code, int) else 0)
            except BaseException:  # noqa: BLE001 (as Python would)
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        message = [os.pread(each.fileno(), 1 << 22, 0).decode() for each in (output, errors)]
    return os.waitstatus_to_exitcode(status), message[0], message[1]


def state() -> dict[str, str]:
    """What is in the namespace, as the kernel's own tools show it."""
    shown = {}
    for name, (needed, command, text) in LOOKS.items():
        shown[name] = ""
        if os.path.exists(needed) and not _names_nothing(needed):
            done = subprocess.run(command.split(), input=text, capture_output=True, text=True, check=False)
            lines = (done.stdout + done.stderr).splitlines()
            shown[name] = "\n".join(line for line in lines if not line.startswith("#"))
    shown["bpf"] = "\n".join(sorted(path for path, _, _ in os.walk(BPF)))
    return shown


def _names_nothing(path: str) -> bool:
    """Whether this lists the legacy tables that there are, and there is none; each look costs a quarter of a second."""
    if path not in LEGACY:
        return False
    with open(path, encoding="ascii") as file:
        return not file.read()


def hide(modules: list[str]) -> list[str]:
    """Put the files of these modules out of modprobe's sight; their paths."""
    result = []
    for module in modules:
        [path] = glob.glob(f"/lib/modules/*/kernel/**/{module}.ko*", recursive=True)
        os.rename(path, f"{path}.hidden")
        result.append(path)
    return result


def unload() -> None:
    """Have the kernel forget all modules, as soon as the last namespace that uses them is gone."""
    end = time.monotonic() + PATIENCE
    while names := loaded():
        for name in names:
            _libc.delete_module(name.encode(), os.O_NONBLOCK)
        assert time.monotonic() < end, f"can't be unloaded: {names}"


def loaded() -> list[str]:
    """The modules that the kernel has, the last that came first."""
    with open("/proc/modules", encoding="ascii") as file:
        return [line.split()[0] for line in file]


def _isolate() -> None:
    _checked(_libc.unshare(CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
