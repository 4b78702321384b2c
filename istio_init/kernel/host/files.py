"""Files that others read meanwhile: read as a whole, replaced as a whole, under a lock of their directory."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from istio_init.errors import InitError, shown
from istio_init.kernel.host.libc import function, get_errno, library
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

# How a file begins and ends, in the directory of the one that it is to become, until it is whole. Runtimes would take
# one that ends in .conf, .conflist or .json for a network, hidden or not.
PARTIAL, UNREAD = ".istio-init-partial-", ".tmp"
AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2  # <linux/fcntl.h>, <linux/fs.h>
LARGEST = 1 << 20  # bytes of a file that is read; no network's configuration comes near


def named(path: str) -> str:
    """A path for an error message, not shortened, since the reader needs it."""
    return shown(path, 256)


class Content(Record):
    """A regular file as it was read: its bytes, its permissions, and what tells whether it is still the same."""

    data: bytes
    mode: int
    owner: tuple[int, int]
    version: tuple[int, int, int, int]


class Changed(InitError):
    """Another program has changed a file since it was read."""


def read(path: str, largest: int = LARGEST) -> Content | None:
    """A file's content, None if there is no such file; InitError if it is not a regular file or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InitError(f"{named(path)}: can't be read: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InitError(f"{named(path)}: not a regular file")
        if status.st_size > largest:
            raise InitError(f"{named(path)}: {status.st_size} bytes, more than {largest} are not read")
        with open(descriptor, "rb", closefd=False) as file:
            # None where a file of /proc that may be waited for, such as kmsg, has nothing now.
            data = file.read(min(largest, status.st_size + LARGEST) + 1) or b""
    except OSError as error:
        raise InitError(f"{named(path)}: can't be read: {error.strerror}; see its file system") from error
    finally:
        os.close(descriptor)
    if len(data) > largest:
        raise InitError(f"{named(path)}: more than {largest} bytes are not read")
    return Content(data, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid), _version(status))


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def replace(path: str, data: bytes, like: Content | None, mode: int) -> None:
    """Have a file hold `data`, from one moment to the next, whatever happens in between.

    `like` is what was read of it, whose permissions it keeps, or None for a new one with `mode`. Changed where it is
    something else by now, InitError where it can't be written. The caller holds the directory's DirectoryLock.
    """
    partial = _partial(path)
    try:
        try:
            _write(partial, data, mode if like is None else like.mode, like.owner if like else None)
            _rename_over(partial, path, like)
        except BaseException:
            _unlinked(partial)
            raise
        _synced(os.path.dirname(path))
    except OSError as error:
        raise InitError(f"{named(path)}: can't be written: {error.strerror}; {_remedy(error.errno)}") from error


def _rename_over(partial: str, path: str, like: Content | None) -> None:
    """Put the partial file in the place of what was read, and of nothing else. Changed where another program wrote."""
    changed = Changed(f"{named(path)}: another program has written it meanwhile")
    if _current(path) != (like.version if like else None):
        raise changed
    try:
        if like is None:
            _rename(partial, path, RENAME_NOREPLACE)
        else:
            exchanged = _exchanged(partial, path, like)
            os.unlink(partial)
            if not exchanged:
                raise changed
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOENT}:
            raise changed from error
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
        os.rename(partial, path)  # a file system, or a kernel, that can't do more


def _exchanged(partial: str, path: str, like: Content) -> bool:
    """Exchange the two, and see what was at the path; what is not `like` goes back there, unless it was replaced again.

    Comparing before a rename would leave a moment in which another program's write is lost.
    """
    placed = _current(partial)
    _rename(partial, path, RENAME_EXCHANGE)
    if _current(partial) == like.version:
        return True
    while True:
        # What came out is newer than what was placed, and goes back; over, if what was placed comes out.
        newer = _current(partial)
        _rename(partial, path, RENAME_EXCHANGE)
        if _current(partial) == placed:
            return False
        placed = newer


def _rename(old: str, new: str, flags: int) -> None:
    """renameat2(2). OSError where it is refused, or not known."""
    call = function(library(None), "renameat2")
    if call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = get_errno()
        raise OSError(number, os.strerror(number))


def _partial(path: str) -> str:
    return os.path.join(os.path.dirname(path), PARTIAL + os.path.basename(path) + UNREAD)


def _current(path: str) -> tuple[int, int, int, int] | None:
    try:
        return _version(os.stat(path))
    except FileNotFoundError:
        return None


def _write(path: str, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        if owner is not None and owner != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remedy(number: int | None) -> str:
    match number:
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return "give the program the right to, and mount the host's directory writable"
        case errno.ENOSPC | errno.EDQUOT:
            return "make room there"
        case _:
            return "name another directory, or fix this one"


def remove(path: str) -> bool:
    """Take a file away; whether there was one. InitError where that is refused."""
    try:
        return _unlinked(path)
    except OSError as error:
        raise InitError(f"{named(path)}: can't be removed: {error.strerror}; {_remedy(error.errno)}") from error


def _unlinked(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def rename(old: str, new: str) -> None:
    """Give a file another name in the same directory, in place of what bears that; InitError where it is refused."""
    try:
        os.rename(old, new)
        _synced(os.path.dirname(new))
    except OSError as error:
        raise InitError(f"{named(old)}: can't be renamed: {error.strerror}; {_remedy(error.errno)}") from error


def sync(directory: str) -> None:
    """Have what was renamed or removed in a directory outlive a power cut. InitError where that fails."""
    try:
        _synced(directory)
    except OSError as error:
        why = f"{error.strerror}; {_remedy(error.errno)}"
        raise InitError(f"{named(directory)}: can't be written to disk: {why}") from error


def _synced(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def names(directory: str) -> list[str]:
    """The names in a directory in the order of their bytes, as runtimes sort them; InitError where it can't be read."""
    try:
        return sorted(os.listdir(directory), key=os.fsencode)
    except OSError as error:
        raise InitError(f"{named(directory)}: can't be read: {error.strerror}; name the host's directory") from error


def sweep(directory: str) -> Iterator[str]:
    """Remove the partial files of a killed run and yield their names; the caller holds the DirectoryLock."""
    for name in names(directory):
        if name.startswith(PARTIAL):
            path = os.path.join(directory, name)
            if not os.path.isdir(path):
                remove(path)
                yield name
