"""Installations of other layouts beside this program's: their pods stay captured by them, and end with them.

Of any layout is known what all have: `pods` maps the network namespace's cookie (eight bytes) to a pod's entry, below
`pods/` the pod's link is pinned under that cookie, below `links/` are the links to the root cgroup.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
from _struct import pack

from istio_init.kernel.ebpf import links, pins, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_VALUE = 4096  # bytes of an element of the map of pods, whatever its layout


def homes(directory: str) -> tuple[str, ...]:
    """The directories of all installations below a directory of pins, except those that are being made."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()
    return tuple(f"{directory}/{name}" for name in sorted(names) if name[:1] == "v" and name[1:].isdigit())


def others(home: str) -> tuple[str, ...]:
    """The directories of the installations beside this one."""
    return tuple(each for each in homes(home.rpartition("/")[0]) if each != home)


def cookies(home: str) -> tuple[int, ...]:
    """The pods of an installation. The caller holds the lock."""
    try:
        return tuple(int(name) for name in os.listdir(f"{home}/pods") if name.isdigit())
    except FileNotFoundError:
        return ()


def home_of(home: str, cookie: int) -> str:
    """The directory of the other installation that has captured a pod; empty if there is none."""
    return next((each for each in others(home) if pins.exists(f"{each}/pods/{cookie}")), "")


def missing(home: str, cookie: int) -> Iterator[str]:
    """What of a pod's capture by another installation is missing: names of programs that are not attached."""
    for name in sorted(os.listdir(f"{home}/links")):
        if not links.is_attached(f"{home}/links/{name}"):
            yield name
    entries = _entries(home)
    try:
        if not syscall.lookup(entries, pack("<Q", cookie), _LONGEST_VALUE):
            yield "the pod's entry"
    finally:
        os.close(entries)


def forget(home: str, cookie: int) -> bool:
    """Remove a pod from the other installations, and those that have no pod left. Returns whether there was one."""
    captured = False
    for each in others(home):
        if pins.exists(f"{each}/pods/{cookie}"):
            _forget(each, cookie)
            captured = True
    return captured


def collect(home: str) -> tuple[int, ...]:
    """Remove the pods whose namespaces are gone from the other installations, as forget() does; their cookies."""
    gone = []
    for each in others(home):
        for cookie in cookies(each):
            if has_ended(f"{each}/pods/{cookie}"):
                _forget(each, cookie)
                gone.append(cookie)
    return tuple(gone)


def has_ended(path: str) -> bool:
    """Whether the network namespace is gone that a pod's link, pinned at a path, was attached to."""
    link = syscall.pinned(path)
    try:
        return not syscall.link_namespace(link)
    finally:
        os.close(link)


def _forget(home: str, cookie: int) -> None:
    entries = _entries(home)
    try:
        syscall.delete(entries, pack("<Q", cookie))
    finally:
        os.close(entries)
    pins.unlink(f"{home}/pods/{cookie}")
    if not cookies(home):
        remove(home)


def _entries(home: str) -> int:
    return syscall.pinned(f"{home}/maps/pods")


def remove(home: str) -> None:
    """Take an installation away. What turns connections goes first. The caller holds the lock."""
    try:
        names = sorted(os.listdir(f"{home}/links"), key=_order)
    except FileNotFoundError:
        names = []
    for name in names:
        links.release(f"{home}/links/{name}")
    # In one step: an installation is whole, or is not there. The next installation clears what a killed process left.
    aside = f"{home}-{os.getpid()}"
    try:
        os.rename(home, aside)
    except FileNotFoundError:
        return
    pins.clear(aside)


def _order(name: str) -> int:
    return next((at for at, prefix in enumerate(("sendmsg", "connect")) if name.startswith(prefix)), 2)
