"""Seccomp filters for tests: system calls that are refused as a container's profile refuses them.

As a program: python -m integration.kit.filters NAME COMMAND..., which runs the command under one of FILTERS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping

from istio_init.record import Record

SOCKET, SETSOCKOPT, GETSOCKOPT = {"x86_64": (41, 54, 55), "aarch64": (198, 208, 209)}[platform.machine()]
AF_NETLINK, NETLINK_ROUTE, NETLINK_NETFILTER = 16, 0, 12
SET_REPLACE = 64  # IPT_SO_SET_REPLACE and IP6T_SO_SET_REPLACE

# <linux/bpf_common.h>, <linux/seccomp.h>
_LOAD, _SKIP_UNLESS, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_NUMBER_AT, _ARGUMENTS_AT = 0, 16  # in struct seccomp_data, whose arguments have 8 bytes, the low half first
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


class Refusal(Record):
    """A system call by its number, with these arguments by their positions, answered with an error's number."""

    call: int
    arguments: Mapping[int, int]
    error: int = errno.EPERM

    def steps(self) -> list[tuple[int, int, int, int]]:
        """The filter's instructions: code, jump if true, jump if false, value."""
        request = [(_NUMBER_AT, self.call), *((_ARGUMENTS_AT + 8 * at, value) for at, value in self.arguments.items())]
        steps = []
        for left, (at, value) in zip(range(len(request), 0, -1), request, strict=True):
            steps += [(_LOAD, 0, 0, at), (_SKIP_UNLESS, 0, 2 * left - 1, value)]
        return [*steps, (_RETURN, 0, 0, _ERRNO | self.error)]


FILTERS = {
    "getsockopt": (Refusal(GETSOCKOPT, {}),),
    "legacy-writes": (Refusal(SETSOCKOPT, {2: SET_REPLACE}),),
    "netfilter": (Refusal(SOCKET, {0: AF_NETLINK, 2: NETLINK_NETFILTER}),),
    # gVisor's answer, and that of profiles that leave out whole families.
    "no-netfilter": (Refusal(SOCKET, {0: AF_NETLINK, 2: NETLINK_NETFILTER}, errno.EPROTONOSUPPORT),),
    "routing": (Refusal(SOCKET, {0: AF_NETLINK, 2: NETLINK_ROUTE}),),
}


def refuse(*refusals: Refusal) -> None:
    """Have the kernel refuse these calls to the calling thread and all that it starts, for good."""
    steps = [step for each in refusals for step in each.steps()]
    steps.append((_RETURN, 0, 0, _ALLOW))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    described = struct.pack("@HP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, described, 0, 0) == 0


if __name__ == "__main__":
    refuse(*FILTERS[sys.argv[1]])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (the command is a test's)
