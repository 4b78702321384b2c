"""Pins in a BPF file system: where it is mounted, the directory that only root may enter, and its lock."""

from __future__ import annotations

import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

BPF_FILE_SYSTEM = "/sys/fs/bpf"


class Lock:
    """An exclusive flock(2) on a directory, which is made where it is missing, readable by root alone."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        try:
            if not exists(self._directory):
                make_directory(self._directory)
            self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            remedy = "a BPF file system has to be mounted there, and that needs SYS_ADMIN on the node"
            raise KernelError(f"{self._directory}: {error.strerror}: {remedy}", error.errno or 0) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def exists(path: str) -> bool:
    """Whether there is something at a path; OSError where that cannot be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def unlink(path: str) -> None:
    """Remove a pin, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def clear(home: str) -> None:
    """Remove an installation's pins and directories, as far as they exist."""
    try:
        for part in os.listdir(home):
            for name in os.listdir(f"{home}/{part}"):
                os.unlink(f"{home}/{part}/{name}")
            os.rmdir(f"{home}/{part}")
        os.rmdir(home)
    except FileNotFoundError:
        pass


def make_directory(path: str) -> None:
    """Make the directory of the pins, and mount the BPF file system below which it is, if neither is there yet."""
    parent = path.rpartition("/")[0]
    if parent == BPF_FILE_SYSTEM and not is_bpf_file_system(parent):
        mount(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass


def is_bpf_file_system(path: str) -> bool:
    """Whether a BPF file system is mounted at a path."""
    with open("/proc/self/mounts", "rb") as mounts:
        return any(line.split(b" ")[1:3] == [path.encode(), b"bpf"] for line in mounts)


def mount(path: str) -> None:
    """Mount a BPF file system at a path, with mode 0700; OSError where that is refused."""
    from istio_init.kernel.host.libc import function, get_errno, library

    if function(library(None), "mount")(b"bpf", path.encode(), b"bpf", 0, b"mode=0700"):
        number = get_errno()
        raise OSError(number, os.strerror(number))
