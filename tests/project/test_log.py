"""The time that a line bears: right to the microsecond, in the second that it is told anew and in those that follow."""

from __future__ import annotations

import json
import pathlib
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init import log
from istio_init.errors import printable

# Up to the year 9999, which is as far as datetime goes.
NANOSECONDS = st.integers(0, 250_000_000_000 * 10**9)


def stamp(nanoseconds: int) -> str:
    with_time = datetime.fromtimestamp(nanoseconds // 10**9, UTC).replace(microsecond=nanoseconds // 1000 % 10**6)
    return with_time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@given(st.lists(st.tuples(NANOSECONDS, st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=3)), max_size=4))
def test_each_line_bears_its_own_time(moments: list[tuple[int, list[int]]]) -> None:
    clock = time.time_ns
    try:
        for moment, behind in moments:
            for fraction in behind:
                now = moment // 10**9 * 10**9 + fraction
                time.time_ns = lambda now=now: now  # type: ignore[misc]
                assert log.now() == stamp(now)
    finally:
        time.time_ns = clock


def test_it_is_the_time_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_last", (-1, ""))
    before, message, after = stamp(time.time_ns()), log.now(), stamp(time.time_ns())
    assert before <= message <= after


@given(st.text())
def test_what_is_printable_is_one_line_and_says_all(text: str) -> None:
    escaped = printable(text)
    assert escaped.isprintable()
    assert (escaped == text) == text.isprintable()
    assert printable(escaped) == escaped


@pytest.mark.parametrize("message", ["a\x1b[2Jb", "a\nb", "a\u202eb", "a\udc9bb", "a\x9bb"])
def test_a_line_of_the_log_is_one_line_and_json_is_exact(message: str, capfd: pytest.CaptureFixture[str]) -> None:
    log.Log().warn(message)
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert line.rstrip("\n").replace("\t", "").isprintable()
    log.Log(as_json=True).warn(message)
    assert json.loads(capfd.readouterr().err)["msg"] == message


def test_the_termination_message_is_printable(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setattr(log, "termination_log", str(path))
    log.write_termination_message("a\x1b[2J\udc9b")
    assert path.read_text() == "a\\x1b[2J\\udc9b"
