"""Archives as a kernel takes them for its first root file system: cpio's "new ASCII" form.

It is described in Linux' Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import pathlib
import stat

_TRAILER = "TRAILER!!!"


class Archive:
    """A root file system, built up in memory; directories come by themselves."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._directories = {"/"}

    def file(self, path: str) -> None:
        """A file of this machine at the path that it has here, and the one that it is a symbolic link to."""
        if os.path.islink(path):
            target = os.path.realpath(path)
            self.file(target)
            self.link(path, target)
        else:
            status = os.stat(path)
            self.write(path, pathlib.Path(path).read_bytes(), status.st_mode, int(status.st_mtime))

    def write(self, path: str, content: bytes, mode: int = stat.S_IFREG | 0o644, modified: int = 0) -> None:
        """A file with this content, unless the path is taken."""
        path = self._settled(path)
        if path not in self._directories:
            self.directory(os.path.dirname(path))
            self._add(path, content, mode, modified)

    def link(self, path: str, target: str) -> None:
        """A symbolic link, unless the path is taken."""
        self.write(path, target.encode(), stat.S_IFLNK | 0o777)

    def directory(self, path: str) -> None:
        """A directory, and those that it is in."""
        if path not in self._directories:
            self.directory(os.path.dirname(path))
            self._add(path, b"", stat.S_IFDIR | 0o755, 0)

    def dump(self) -> bytes:
        """The archive's bytes."""
        return b"".join((*self._parts, _entry(_TRAILER, b"", 0, 0, 0)))

    def _settled(self, path: str) -> str:
        """The path with its directory as it really is; links on the way, such as /lib, go in as they are here."""
        directory, name = os.path.split(os.path.abspath(path))
        if directory != os.path.realpath(directory):
            parent = self._settled(directory)
            if os.path.islink(parent):
                self.link(parent, os.readlink(parent))
            directory = os.path.realpath(directory)
        return os.path.join(directory, name)

    def _add(self, path: str, content: bytes, mode: int, modified: int) -> None:
        self._directories.add(path)
        self._parts.append(_entry(path[1:], content, mode, modified, len(self._directories)))


def _entry(name: str, content: bytes, mode: int, modified: int, number: int) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, modified, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
