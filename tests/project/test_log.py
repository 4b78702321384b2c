"""The time that a line bears: right to the microsecond, in the second that it is told anew and in those that follow."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from istio_init import log

if TYPE_CHECKING:
    import pytest

# Up to the year 9999, which is as far as datetime goes.
NANOSECONDS = st.integers(0, 250_000_000_000 * 10**9)


def told(nanoseconds: int) -> str:
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
                assert log.now() == told(now)
    finally:
        time.time_ns = clock


def test_it_is_the_time_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_last", (-1, ""))
    before, said, after = told(time.time_ns()), log.now(), told(time.time_ns())
    assert before <= said <= after
