"""Descriptors of a node's links and maps: what loses its pin stays attached meanwhile, and is pinned again.

A pin that was removed on purpose is told from one that was lost by its link: what this program takes away is detached
first (links.release), and a pod's entry goes before its pin (pods.forget).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from istio_init.errors import InitError
from istio_init.kernel.ebpf import layouts, pins, pods, syscall
from istio_init.kernel.ebpf.installation import Installation, root_cgroup
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

# The parts of an installation: what attached programs need is there before them.
_MAPS, _LINKS, _PODS = "maps", "links", "pods"
_PARTS = (_MAPS, _LINKS, _PODS)
_LONGEST_VALUE = 4096  # bytes of an element of the map of pods, whatever its layout


class Look(Record):
    """What one look at the pins came to.

    `restored` have been pinned again, `attached` are programs that were attached anew, `collected` the cookies of
    namespaces that had ended, `missing` the programs that are not attached at the cgroup though they should be, `why`
    the reason.
    """

    restored: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    collected: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    why: str = ""


class Holder:
    """Holds what is pinned on this node, from the first look on, until `close`.

    After all pins were lost, an ADD may install anew before the next look. The pods of the installation that is held
    then stay captured as long as this object lives, since nothing else refers to it.
    """

    def __init__(self, directory: str = "", cgroup: str = "") -> None:
        self._directory = Installation("", directory).directory
        self._cgroup = cgroup
        # By path: a descriptor, and the inode of the pin, which another pin at the same path does not have.
        self._held: dict[str, tuple[int, int]] = {}
        # Links of an installation that another has replaced.
        self._orphans: list[tuple[str, int]] = []

    @property
    def installed(self) -> bool:
        """Whether there is something to hold."""
        return bool(self._held) or pins.exists(self._directory)

    def look(self) -> Look:
        """Hold what is new, pin again what is lost, attach what is missing, forget what has ended.

        InitError or OSError where the pins cannot be read.
        """
        if not self.installed:
            return Look()
        with pins.Lock(self._directory):
            restored = self._restore()
            self._take()
        # What it opens is of the pins as they are now, and closed again.
        installation = Installation(self._cgroup, self._directory)
        try:
            attached, missing, why = self._attach(installation)
            pod_links = ((path, each) for path, (each, _) in self._held.items() if _part(path) == _PODS)
            ended = any(_is_detached(*each) for each in pod_links)
            return Look(restored, attached, pods.collect(installation) if ended else (), missing, why)
        finally:
            installation.close()

    def close(self) -> None:
        """Let go of everything; what is pinned stays."""
        for descriptor in (*(each for each, _ in self._held.values()), *(each for _, each in self._orphans)):
            os.close(descriptor)
        self._held.clear()
        self._orphans.clear()

    def _restore(self) -> tuple[str, ...]:
        """Pin again what was not removed on purpose, and let go of what was. The caller holds the lock."""
        for home in {_home(path) for path in self._held}:
            if self._is_another(f"{home}/{_MAPS}/pods"):
                for path in [each for each in self._held if _home(each) == home]:
                    self._replaced(path)
        lost = {path for path in self._held if not pins.exists(path)}
        for path in [each for each in lost if self._is_released(each)]:
            self._drop(path)
            lost.discard(path)
        # Without a program that is attached the maps are of no use: the installation was removed.
        for home in {_home(path) for path in lost}:
            if not any(_home(path) == home and f"/{_LINKS}/" in path for path in self._held):
                for path in [each for each in self._held if _home(each) == home]:
                    self._drop(path)
                    lost.discard(path)
        for path in sorted(lost, key=lambda each: _PARTS.index(_part(each))):
            for directory in (_home(path), os.path.dirname(path)):
                pins.make_directory(directory)
            syscall.pin(self._held[path][0], path)
            self._held[path] = self._held[path][0], os.lstat(path).st_ino
        return tuple(sorted(lost))

    def _is_another(self, path: str) -> bool:
        """Whether another object is pinned where one is held of."""
        return path in self._held and pins.exists(path) and os.lstat(path).st_ino != self._held[path][1]

    def _is_released(self, path: str) -> bool:
        """Whether a pin that is missing was removed on purpose, or its pod has ended."""
        if _part(path) == _MAPS:
            return False
        if _part(path) == _PODS:
            entries = self._held.get(f"{_home(path)}/{_MAPS}/pods")
            key = int(os.path.basename(path)).to_bytes(8, "little")
            if entries is None or syscall.lookup(entries[0], key, _LONGEST_VALUE) is None:
                return True
        return _is_detached(path, self._held[path][0])

    def _take(self) -> None:
        """Hold what is pinned and not held yet, and let go of orphans that are detached. The caller holds the lock."""
        for orphan in [each for each in self._orphans if _is_detached(*each)]:
            self._orphans.remove(orphan)
            os.close(orphan[1])
        for path, inode in _pinned(self._directory):
            if self._is_another(path):
                self._replaced(path)
            if path not in self._held:
                self._held[path] = syscall.pinned(path), inode

    def _replaced(self, path: str) -> None:
        """Another object is pinned at a path: keep what was held while it is attached."""
        descriptor, _ = self._held.pop(path)
        if _part(path) == _MAPS or _is_detached(path, descriptor):
            os.close(descriptor)
        else:
            self._orphans.append((path, descriptor))

    def _drop(self, path: str) -> None:
        os.close(self._held.pop(path)[0])

    def _attach(self, installation: Installation) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """Attach the programs that are missing; those that were, those that could not be, and why."""
        with installation.lock():
            if not installation.installed:
                return (), (), ""
            dns = pods.wants_dns(installation)
            missing = tuple(installation.missing_links(dns=dns))
            if not missing or not pods.cookies(installation):
                return (), (), ""
            try:
                installation.cgroup = installation.cgroup or root_cgroup()
                installation.install(dns=dns)
            except InitError as error:
                return (), missing, str(error)
            self._take()
        return missing, (), ""


def _is_detached(path: str, descriptor: int) -> bool:
    """Whether a link attaches nothing any more; a pod's does not once the pod's network namespace is gone."""
    return not (syscall.link_namespace(descriptor) if _part(path) == _PODS else syscall.link_cgroup(descriptor))


def _part(path: str) -> str:
    """Which part of an installation a pin is in."""
    return path.rsplit("/", 2)[1]


def _home(path: str) -> str:
    """The directory of the installation that a pin is of."""
    return path.rsplit("/", 2)[0]


def _pinned(directory: str) -> Iterator[tuple[str, int]]:
    """The paths of all pins with their inodes, of every layout, but not of an installation that is being made.

    What root has put there beside them is left out.
    """
    for home in layouts.homes(directory):
        for part in _PARTS:
            # A part is missing if root removed it.
            with contextlib.suppress(FileNotFoundError), os.scandir(f"{home}/{part}") as entries:
                yield from (
                    (entry.path, entry.inode())
                    for entry in entries
                    if not entry.is_dir() and (part != _PODS or entry.name.isdigit())
                )
