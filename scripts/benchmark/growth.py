"""How the time grows with the number of ports or networks that are excluded outbound."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figures import Ratio, milliseconds, ratio
from .processes import Command, Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .contenders import Field
    from .processes import Measured

COUNTS = (10, 100, 1_000, 10_000)
BASE = ("-u", "1337", "-i", "*", "-b", "*")
# No argument of a program may be longer (<linux/binfmts.h>, MAX_ARG_STRLEN); that bounds how entries are spelled here.
LONGEST_ARGUMENT = 131_071


def ports(count: int) -> str:
    """As -o takes them; each becomes two rules, TCP and UDP."""
    return ",".join(str(10_000 + number) for number in range(count))


def ipv4(count: int) -> str:
    """Networks as -x takes them: addresses and four lengths of prefixes by turns, none of them next to another."""
    return ",".join(f"{1 + n // 125}.{n % 125 * 2}.0.0{('', '/16', '/17', '/20', '/24')[n % 5]}" for n in range(count))


def in_a_row(count: int) -> str:
    """Addresses, one after the other."""
    return ",".join(f"1.1.{number // 250}.{number % 250}" for number in range(count))


def apart(count: int) -> str:
    """Addresses of which no two follow each other."""
    return ",".join(f"1.{number // 12_500}.{number // 100}.{number % 100 * 2}" for number in range(count))


def ipv6(count: int) -> str:
    """Networks as -x takes them, of five lengths by turns."""
    return ",".join(f"f:{n:x}::/{(32, 40, 48, 64, 128)[n % 5]}" for n in range(count))


KINDS: dict[str, tuple[tuple[str, ...], Callable[[int], str]]] = {
    "ports, IPv4": (("--no-enable-ipv6", "-o"), ports),
    "ports, IPv4 and IPv6": (("--enable-ipv6", "-o"), ports),
    "CIDRs, IPv4": (("--no-enable-ipv6", "-x"), ipv4),
    "CIDRs, IPv6": (("--enable-ipv6", "-x"), ipv6),
}


# Long lists that backends treat differently: adjacent entries are one interval in a set, others are one each.
LISTS = {
    "10,000 addresses in a row": ("-x", in_a_row(10_000)),
    "10,000 addresses apart": ("-x", apart(10_000)),
    "10,000 mixed prefixes": ("-x", ipv4(10_000)),
    "9,000 networks apart": ("-x", ",".join(f"{1 + n // 125}.{n % 125 * 2}.0.0/16" for n in range(9_000))),
    "10,000 ports in a row": ("-o", ports(10_000)),
    "10,000 ports apart": ("-o", ",".join(str(10_000 + 2 * n) for n in range(10_000))),
}


def listed(name: str) -> list[str]:
    """The command line of one of LISTS."""
    return [*BASE, "--no-enable-ipv6", *LISTS[name]]


@dataclass(frozen=True, slots=True)
class Point:
    """One kind at one count: milliseconds, peak kilobytes, and ratios within the rounds."""

    kind: str
    count: int
    apply: float
    restore: float
    in_place: float
    apply_to_restore: Ratio
    in_place_to_apply: Ratio
    apply_memory: float
    in_place_memory: float
    restore_memory: float


def names(kind: str, count: int) -> tuple[str, str, str]:
    """What the three contenders of a point are called: apply, restore and in place."""
    name = f"{count} {kind}"
    return name, f"{name} by legacy-restore", f"{name} in place"


def arguments(kind: str, count: int) -> list[str]:
    """The command line of a kind at a count."""
    ending, entries = KINDS[kind]
    return [*BASE, *ending, entries(count)]


def contenders(field: Field, counts: tuple[int, ...]) -> Iterator[Contender]:
    """The three contenders of every kind and count."""
    for kind in KINDS:
        for count in counts:
            apply, restore, in_place = names(kind, count)
            flags = arguments(kind, count)
            yield Contender(apply, (Command((field.command, *flags)),))
            yield field.restore(flags, "legacy", restore)
            yield field.in_place(flags, in_place)


def points(results: Mapping[str, Measured], counts: tuple[int, ...]) -> list[Point]:
    """What the rounds of all contenders say, by kind and count."""
    return [_point(results, kind, count) for kind in KINDS for count in counts]


def _point(results: Mapping[str, Measured], kind: str, count: int) -> Point:
    apply, restore, in_place = (results[name] for name in names(kind, count))
    return Point(
        kind,
        count,
        milliseconds(apply.wall),
        milliseconds(restore.wall),
        milliseconds(in_place.wall),
        ratio(apply.wall, restore.wall),
        ratio(in_place.wall, apply.wall),
        statistics.median(apply.memory),
        statistics.median(in_place.memory),
        statistics.median(restore.memory),
    )
