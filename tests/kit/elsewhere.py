"""The programs on a machine that is not Linux, as far as Python shows it: python -m tests.kit.elsewhere ARGV.

No netlink sockets, no /proc, no shared library of Linux's, and a C library without its calls.
"""

from __future__ import annotations

import _ctypes
import _socket
import builtins
import os
import posix
import socket
import sys
from collections.abc import Callable
from typing import Any

CONSTANTS = (
    "AF_NETLINK",
    "AF_PACKET",
    "NETLINK_ROUTE",
    "NETLINK_NETFILTER",
    "SOCK_CLOEXEC",
    "SOCK_NONBLOCK",
    "SO_MARK",
)
CALLS = {"setns", "unshare", "inotify_init1", "inotify_add_watch", "prctl", "mallopt", "bpf", "syscall", "mount"}


def without_linux() -> None:
    """Take from this process what another system does not have."""
    sys.platform = "darwin"
    for module in (_socket, socket):
        for name in CONSTANTS:
            if hasattr(module, name):
                delattr(module, name)
    for module in (os, posix):
        for name in ("setns", "unshare", "pidfd_open", "O_PATH", "O_TMPFILE"):
            if hasattr(module, name):
                delattr(module, name)
    _replace(builtins, "open", _no_proc)
    _replace(posix, "open", _no_proc)
    _replace(os, "open", _no_proc)
    _replace(_ctypes, "dlopen", _no_library)
    _replace(_ctypes, "dlsym", _no_call)


def _replace(module: Any, name: str, wrap: Callable[[Any], Any]) -> None:  # noqa: ANN401
    setattr(module, name, wrap(getattr(module, name)))


def _no_proc(function: Any) -> Any:  # noqa: ANN401
    def opened(path: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return function(path, *arguments, **named)

    return opened


def _no_library(function: Any) -> Any:  # noqa: ANN401
    def opened(name: Any, *arguments: Any) -> Any:  # noqa: ANN401
        if name and ".so" in str(name):
            raise OSError(f"dlopen({name}): image not found")
        return function(name, *arguments)

    return opened


def _no_call(function: Any) -> Any:  # noqa: ANN401
    def refuse(handle: Any, name: Any, *arguments: Any) -> Any:  # noqa: ANN401
        if name in CALLS:
            raise OSError(f"dlsym({name}): symbol not found")
        return function(handle, name, *arguments)

    return refuse


if __name__ == "__main__":
    without_linux()
    program, *argv = sys.argv[1:]
    if program == "istio-init":
        from istio_init.cli.app import main
    else:
        from istio_init.cli.start import main
    sys.exit(main(argv, os.environ))
