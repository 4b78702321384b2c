"""The plugin's log: whole lines of JSON whatever is in them, in a file within its bound, however many write."""

from __future__ import annotations

import fcntl
import json
import os
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_init.cni.plugin.log import LONGEST_LINE, PodLog, line
from istio_init.kernel.host import logfile
from istio_init.kernel.host.logfile import OLDER, append

FACTS = {"command": "ADD", "pod": "web", "namespace": "default", "sandbox": "0f" * 32}
HOSTILE = st.text() | st.integers(0, 1500).map(lambda count: '\U0001f600\0\x7f\n"\\' * count)
WRITERS, LINES = 8, 60


@given(message=HOSTILE, pod=HOSTILE, why=HOSTILE)
@example(message="\ud800", pod='","level":"fatal', why="\u2028")
@example(message="\x00" * LONGEST_LINE, pod="\U0001f600" * LONGEST_LINE, why="")
def test_a_line_is_one_line_of_json_and_never_too_long(message: str, pod: str, why: str) -> None:
    data = line("info", message, {**FACTS, "pod": pod, "decision": "captured", "why": why})
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert len(data) <= LONGEST_LINE
    document = json.loads(data.decode("ascii"))
    assert message.startswith(document["msg"])
    assert pod.startswith(document["pod"])
    assert (document["level"], document["sandbox"]) == ("info", FACTS["sandbox"])
    assert ("cut" in document) == (document["msg"] != message or document["pod"] != pod or document["why"] != why)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "made" / "cni.log"


def whole_lines(path: Path) -> list[dict[str, str]]:
    """Every line of a file, each of them JSON."""
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(each) for each in text.splitlines()]


def in_a_child(work: Callable[[], None]) -> int:
    """The process that does some work, by its id; it ends with 0 where nothing was raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def written_at_once(path: Path, limit: int) -> None:
    """Have many processes write at once, each some lines with its number and theirs."""

    def write(writer: int) -> None:
        for number in range(LINES):
            append(str(path), line("info", f"{writer} {number} {'x' * (number * 7 % 300)}", FACTS), limit)

    children = [in_a_child(lambda writer=writer: write(writer)) for writer in range(WRITERS)]  # type: ignore[misc]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * WRITERS


def test_many_writers_at_once_lose_no_line_and_mix_none(log: Path) -> None:
    written_at_once(log, 1 << 30)
    counts = Counter(tuple(each["msg"].split()[:2]) for each in whole_lines(log))
    assert counts == Counter((str(writer), str(number)) for writer in range(WRITERS) for number in range(LINES))
    assert not log.with_name(log.name + OLDER).exists()


def test_many_writers_at_once_keep_the_bound(log: Path) -> None:
    limit = 4096
    written_at_once(log, limit)
    older = log.with_name(log.name + OLDER)
    for path in (log, older):
        assert 0 < path.stat().st_size <= limit
        assert path.stat().st_mode & 0o777 == 0o600
    # The youngest are kept, in the order in which each writer wrote them.
    message = [each["msg"].split()[:2] for path in (older, log) for each in whole_lines(path)]
    for writer in range(WRITERS):
        own = [int(number) for name, number in message if name == str(writer)]
        assert own == sorted(own)
    assert log.parent.stat().st_mode & 0o777 == 0o700
    assert len(list(log.parent.iterdir())) == 2


def test_a_line_that_is_longer_than_the_bound_has_the_file_for_itself(log: Path) -> None:
    for sign in (b"a", b"b", b"c"):
        append(str(log), sign * 50 + b"\n", 10)
    assert log.read_bytes() == b"c" * 50 + b"\n"
    assert log.with_name(log.name + OLDER).read_bytes() == b"b" * 50 + b"\n"


@pytest.mark.parametrize("before", [b"", b"whole\n", b"whole\nwhole too\n"])
@pytest.mark.parametrize("half", [b'{"level": "in', b"x" * 5000])
def test_half_a_line_of_a_writer_who_was_killed_is_cut_off(log: Path, before: bytes, half: bytes) -> None:
    log.parent.mkdir()
    log.write_bytes(before + half)
    append(str(log), b"next\n", 1 << 20)
    assert log.read_bytes() == before + b"next\n"


def test_where_there_is_no_room_for_a_line_no_part_of_it_stays(log: Path) -> None:
    append(str(log), b"whole\n", 1 << 20)

    def fill() -> None:
        # For this process the disk is full after ten bytes.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with pytest.raises(OSError, match="No space left"):
            append(str(log), b"another\n", 1 << 20)
        append(str(log), b"fit\n", 1 << 20)
        with pytest.raises(OSError, match="File too large"):
            append(str(log), b"\n", 1 << 20)

    assert os.waitpid(in_a_child(fill), 0)[1] == 0
    assert log.read_bytes() == b"whole\nfit\n"


def test_somebody_who_keeps_the_file_locked_holds_up_nobody_for_long(
    log: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logfile, "PATIENCE", 0.02)
    append(str(log), b"{}\n", 1 << 20)
    with log.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        podlog = PodLog("info", str(log), 1 << 20)
        podlog.info("first")
        podlog.info("second")
    output = [json.loads(each)["msg"] for each in capfd.readouterr().err.splitlines()]
    assert (output[0], output[2]) == ("first", "second")
    assert output[1].startswith(f"log_file: {log}: can't be written")
    assert log.read_bytes() == b"{}\n"


@pytest.mark.parametrize("place", ["file/under", "directory", "link"])
def test_a_file_that_can_not_be_written_is_said_once_and_is_no_failure(
    tmp_path: Path, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    podlog = PodLog("info", str(tmp_path / place), 4096)
    podlog.know(**FACTS)
    for number in range(2):
        podlog.info(f"line {number}")
    lines = [json.loads(each) for each in capfd.readouterr().err.splitlines()]
    warned = [each for each in lines if each["level"] == "warn"]
    assert len(warned) == 1
    assert str(tmp_path / place) in warned[0]["msg"]
    assert warned[0]["pod"] == "web"
    assert lines[-1]["msg"].startswith("line ")
    assert (tmp_path / "file").read_text() == ""


def test_a_pipe_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for _ in range(20):
        append(str(tmp_path / "fifo"), b"x" * 5000 + b"\n", 4096)
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_levels(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    podlog = PodLog("info", str(log), 4096, aloud="warn")
    podlog.debug("debug")
    podlog.info("info")
    podlog.warn("warn")
    assert [each["msg"] for each in whole_lines(log)] == ["info", "warn"]
    assert [json.loads(each)["msg"] for each in capfd.readouterr().err.splitlines()] == ["warn"]
    PodLog("none", str(log), 4096).error("error")
    assert capfd.readouterr().err == ""
    PodLog("info", "", 4096).info("to standard error alone")
    assert len(whole_lines(log)) == 2
