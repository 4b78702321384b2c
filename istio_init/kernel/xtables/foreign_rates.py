"""Prints other programs' rate estimators, -j RATEEST and -m rateest; foreign_options.py selects the function."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables.foreign_words import negation, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

NAME = 16  # IFNAMSIZ
# enum xt_rateest_match_flags and xt_rateest_match_mode.
INVERT, RELATIVE, DELTA, BYTES, PACKETS = 1, 4, 8, 16, 32
MODES = {1: "eq", 2: "lt", 3: "gt"}
# The estimator's shortest interval, a quarter of a second, in microseconds.
QUARTER = 250_000
SECOND, MILLISECOND = 1_000_000, 1000


def _target(data: bytes, _: Family) -> Iterator[str]:
    """The struct xt_rateest_target_info; both times are powers of two."""
    interval, average = struct.unpack_from("=bB", data, NAME)
    yield f"--rateest-name {text_of(data[:NAME])}"
    yield f"--rateest-interval {_time(QUARTER << interval + 2)}"
    yield f"--rateest-ewmalog {_time(QUARTER << interval + 2 + average)}"


def _time(microseconds: int) -> str:
    if microseconds >= SECOND:
        return f"{microseconds / SECOND:.1f}s"
    return f"{microseconds / MILLISECOND:.1f}ms"


def _match(data: bytes, _: Family) -> Iterator[str]:
    """The struct xt_rateest_match_info; without --rateest-delta, iptables has the rate in the second place."""
    flags, mode, bytes1, packets1, bytes2, packets2 = struct.unpack_from("=HH4I", data, 2 * NAME)
    compares = f"{negation(flags & INVERT)}--rateest-{MODES[mode]}"
    delta, relative = flags & DELTA, flags & RELATIVE
    yield from ["--rateest-delta"] if delta else []
    yield f"--rateest{'1' if relative else ''} {text_of(data[:NAME])}"
    rates = ((BYTES, "bps", _rate(bytes1), _rate(bytes2)), (PACKETS, "pps", str(packets1), str(packets2)))
    for bit, unit, first, second in rates:
        if flags & bit and delta:
            yield f"--rateest-{unit}1 {first} {compares} --rateest-{unit}2 {second}"
        elif flags & bit:
            yield f"{compares} --rateest-{unit}" + ("" if relative else f" {second}")
    yield from [f"--rateest2 {text_of(data[NAME : 2 * NAME])}"] if relative else []


def _rate(count: int) -> str:
    bits = count * 8
    for least, size, unit in ((10**9, 10**6, "Mbit"), (10**6, 1000, "Kbit")):
        if bits >= least:
            return f"{bits / size:.0f}{unit}"
    return f"{bits}bit"


MATCHES: dict[tuple[str, int], Reader] = {("rateest", 0): _match}
TARGETS: dict[tuple[str, int], Reader] = {("RATEEST", 0): _target}
