"""Prints other programs' matches of rates, counts, the clock and connections; foreign_options.py selects functions."""

from __future__ import annotations

import struct
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.kernel.xtables.foreign_words import address_size, names, negation, quoted, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

HIGHEST32, HIGHEST64 = 2**32 - 1, 2**64 - 1
# Of hashlimit: the units of rates and bytes, the mode's bits, and how long entries live in milliseconds.
PERIODS = (("day", 24 * 60 * 60), ("hour", 60 * 60), ("min", 60), ("sec", 1))
SIZES = (("m", 1024 * 1024), ("k", 1024), ("", 1))
HASHED = {4: "srcip", 8: "srcport", 1: "dstip", 2: "dstport"}
INVERT, BYTES, RATE_MATCH = 16, 32, 64
GC_INTERVAL, BYTE_EXPIRE, BYTE_EXPIRE_BURST = 1000, 15_000, 60_000
SCALES = {1: 10_000, 2: 1_000_000, 3: 1_000_000}
RECENT = {2: "--set", 1: "--rcheck", 4: "--update", 8: "--remove"}
WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ALL_MONTHDAYS, ALL_WEEKDAYS, LAST_SECOND = 0xFFFFFFFE, 0xFE, 24 * 60 * 60 - 1
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (printed without a zone)


def _hashlimit(revision: int) -> Reader:
    """The structs xt_hashlimit_mtinfo1 to 3."""

    def read(data: bytes, family: Family) -> Iterator[str]:
        interval = 1
        if revision == 1:
            mode, average, burst, size, most, collected, expire = struct.unpack_from("=7I", data, 16)
            masks = data[44:46]
        else:
            average, burst, mode, size, most, collected, expire = struct.unpack_from("=QQ5I", data, 256)
            masks = data[292:294]
        if revision == 3:
            (interval,), masks = struct.unpack_from("=I", data, 292), data[296:298]
        yield f"--hashlimit-{'above' if mode & INVERT else 'upto'}"
        rate, lifetime = _bytes(average, burst) if mode & BYTES else _rate(average, burst, SCALES[revision])
        yield rate
        if hashed := names(mode, HASHED):
            yield f"--hashlimit-mode {hashed}"
        yield f"--hashlimit-name {text_of(data[: 16 if revision == 1 else 255])}"
        bits = address_size(family) * 8
        parts = (
            ("htable-size", size, 0), ("htable-max", most, 0), ("htable-gcinterval", collected, GC_INTERVAL),
            ("htable-expire", expire, lifetime), ("srcmask", masks[0], bits), ("dstmask", masks[1], bits),
        )  # fmt: skip
        yield from (f"--hashlimit-{option} {value}" for option, value, default in parts if value != default)
        if revision == 3 and mode & RATE_MATCH:
            yield "--hashlimit-rate-match"
            yield from [f"--hashlimit-rate-interval {interval}"] if interval != 1 else []

    return read


def _rate(period: int, burst: int, scale: int) -> tuple[str, int]:
    """Packets in a period, and how long an entry lives."""
    if not period:
        return f"inf --hashlimit-burst {burst}", 0
    name, seconds = PERIODS[0]
    for unit, length in PERIODS[1:]:
        if period > length * scale or length * scale // period < length * scale % period:
            break
        name, seconds = unit, length
    return f"{seconds * scale // period}/{name} --hashlimit-burst {burst}", seconds * 1000


def _bytes(cost: int, burst: int) -> tuple[str, int]:
    rate = ((HIGHEST32 // cost if cost else HIGHEST32) - 1) << 4
    exact = (size for size in SIZES if rate >= size[1] and _cost(rate & ~(size[1] - 1)) == cost)
    name, unit = next(exact, SIZES[-1])
    text = f"{rate // unit}{name}b/s"
    if not burst:
        return text, BYTE_EXPIRE
    rate *= burst
    name, unit = next((size for size in SIZES if rate >= size[1]), SIZES[-1])
    return f"{text} --hashlimit-burst {rate // unit}{name}b", BYTE_EXPIRE_BURST


def _cost(rate: int) -> int:
    """A rate in bytes as the kernel stores it."""
    return HIGHEST32 // ((rate >> 4) + 1)


def _recent(revision: int) -> Reader:
    def read(data: bytes, family: Family) -> Iterator[str]:
        seconds, hits = struct.unpack_from("=II", data)
        checked, inverted, side = data[8], data[9], data[210]
        size = address_size(family)
        mask = data[212 : 212 + size] if revision else b"\xff" * size
        words = [word for bit, word in RECENT.items() if checked & bit]
        words += [f"--seconds {seconds}"] if seconds else []
        words += ["--reap"] if checked & 32 else []
        words += [f"--hitcount {hits}"] if hits else []
        words += ["--rttl"] if checked & 16 else []
        yield negation(inverted) + " ".join(words)
        yield f"--name {text_of(data[10:210])} --mask {address_text(mask)} --{'rdest' if side else 'rsource'}"

    return read


def _connlimit(revision: int) -> Reader:
    def read(data: bytes, family: Family) -> Iterator[str]:
        prefix = int.from_bytes(data[: address_size(family)]).bit_count()
        limit, flags = struct.unpack_from("=II", data, 16)
        yield f"--connlimit-{'upto' if flags & 1 else 'above'} {limit} --connlimit-mask {prefix}"
        if revision:
            yield "--connlimit-daddr" if flags & 2 else "--connlimit-saddr"

    return read


def _connbytes(data: bytes, _: Family) -> Iterator[str]:
    low, high = struct.unpack_from("=QQ", data)
    inverted = low > high
    low, high = (high, low) if inverted else (low, high)
    yield f"{negation(inverted)}--connbytes {low}" + (f":{high}" if high and high < HIGHEST64 else "")
    yield f"--connbytes-mode {('packets', 'bytes', 'avgpkt')[data[16]]}"
    yield f"--connbytes-dir {('original', 'reply', 'both')[data[17]]}"


def _quota(data: bytes, _: Family) -> Iterator[str]:
    flags, quota = struct.unpack_from("=I4xQ", data)
    yield f"{negation(flags & 1)}--quota {quota}"


def _time(data: bytes, _: Family) -> Iterator[str]:
    first_date, last_date, first, last, month, week, flags = struct.unpack_from("=5IBB", data)
    if (first, last) != (0, LAST_SECOND):
        yield f"--timestart {_clock(first)} --timestop {_clock(last)}"
    if month != ALL_MONTHDAYS:
        yield f"--monthdays {','.join(str(day) for day in range(1, 32) if month >> day & 1)}"
    if week != ALL_WEEKDAYS:
        yield f"--weekdays {','.join(name for day, name in enumerate(WEEK, 1) if week >> day & 1)}"
    for option, date in (("datestart", first_date), ("datestop", last_date)):
        if date:
            yield f"--{option} {(EPOCH + timedelta(seconds=date)).isoformat()}"
    yield from ["--kerneltz"] if flags & 1 else []
    yield from ["--contiguous"] if flags & 2 else []


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _helper(data: bytes, _: Family) -> Iterator[str]:
    (inverted,) = struct.unpack_from("=I", data)
    yield f"{negation(inverted)}--helper {quoted(text_of(data[4:34]))}"


def _connlabel(data: bytes, _: Family) -> Iterator[str]:
    bit, options = struct.unpack_from("=HH", data)
    yield f'{negation(options & 1)}--label "{bit}"'
    yield from ["--set"] if options & 2 else []


def _cluster(data: bytes, _: Family) -> Iterator[str]:
    total, mask, seed, flags = struct.unpack_from("=4I", data)
    yield f"{negation(flags & 1)}--cluster-local-nodemask {mask:#010x}"
    yield f"--cluster-total-nodes {total} --cluster-hash-seed {seed:#010x}"


def _account(data: bytes, _: Family) -> Iterator[str]:
    """The structs xt_nfacct_match_info and _v1; iptables-save prints two blanks."""
    yield f"--nfacct-name  {quoted(text_of(data[:32]))}"


MATCHES: dict[tuple[str, int], Reader] = {
    **{("hashlimit", revision): _hashlimit(revision) for revision in SCALES},
    ("recent", 0): _recent(0),
    ("recent", 1): _recent(1),
    ("connlimit", 0): _connlimit(0),
    ("connlimit", 1): _connlimit(1),
    ("connbytes", 0): _connbytes,
    ("quota", 0): _quota,
    ("time", 0): _time,
    ("helper", 0): _helper,
    ("nfacct", 0): _account,
    ("nfacct", 1): _account,
    ("connlabel", 0): _connlabel,
    ("cluster", 0): _cluster,
}
