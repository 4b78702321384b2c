"""Two programs that insist on one network: they take turns ever more slowly, say so, and one of them ends it."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import TYPE_CHECKING

from integration.cni.test_installation import FLANNEL, ROOT, Host, entered, host
from integration.kit.endpoints import awaited
from istio_init.cni.node.conflist import plugin_entry
from istio_init.cni.node.contest import AT_ONCE, CALM, LONGEST, Contest

if TYPE_CHECKING:
    import pathlib

__all__ = ["host"]  # the fixture


def test_waits_grow_to_a_bound_and_begin_anew_in_peace() -> None:
    contest, now, waits = Contest(), 0.0, []
    for _ in range(AT_ONCE + 10):
        _, wait = contest.wrote("a", now)
        waits.append(wait)
        now += wait + 1
    assert waits[:AT_ONCE] == [0] * AT_ONCE
    assert waits[AT_ONCE : AT_ONCE + 4] == [1, 2, 4, 8]
    assert max(waits) == waits[-1] == LONGEST
    assert contest.wrote("b", now) == (1, 0)
    assert contest.wrote("a", now + LONGEST + CALM) == (1, 0)


def watched(host: Host, *options: str) -> subprocess.Popen[str]:
    command = host.command("install", "--watch", "--interval=1h", *options)
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def lines_until(run: subprocess.Popen[str], words: str) -> list[str]:
    """What a watcher says, up to the first line that has these words."""
    assert run.stderr is not None
    lines = []
    for line in run.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


def written(lines: list[str]) -> int:
    return sum(": istio-init-cni added" in line or "brought up to date" in line for line in lines)


def ended(run: subprocess.Popen[str]) -> None:
    run.terminate()
    run.communicate()


def test_a_program_that_restores_its_own(host: Host) -> None:
    path = host.network("10-flannel.conflist", FLANNEL)
    stop = threading.Event()

    def insist() -> None:
        while not stop.wait(0.01):
            if entered(path):
                other = host.networks / "other.tmp"
                other.write_text(FLANNEL)
                other.rename(path)

    other = threading.Thread(target=insist)
    other.start()
    run = watched(host)
    try:
        lines = lines_until(run, "left alone for 4 s")
    finally:
        stop.set()
        other.join()
    assert written(lines) == AT_ONCE + 3
    assert f"{path}: written {AT_ONCE + 1} times in a row, and each time another program undid it" in "".join(lines)
    awaited(lambda: entered(path), "the entry, once the other program has ended")
    ended(run)


def test_two_watchers_with_different_entries(host: Host, tmp_path: pathlib.Path) -> None:
    path = host.network("10-flannel.conflist", FLANNEL)
    runs = []
    for name in ("one", "other"):
        configuration = tmp_path / f"{name}.json"
        configuration.write_text(json.dumps({"type": "istio-init-cni", "log_file": f"/var/log/{name}"}))
        runs.append(watched(host, f"--plugin-config={configuration}", "--on-exit=keep"))
    for run in runs:
        assert written(lines_until(run, "left alone for 1 s")) == AT_ONCE + 1
    for run in runs:
        ended(run)
    entry = plugin_entry(path.read_text())
    assert entry
    assert entry["log_file"] in {"/var/log/one", "/var/log/other"}
