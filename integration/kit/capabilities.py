"""Doing without capabilities, or as another user, for the rest of the calling thread's life: fork first."""

from __future__ import annotations

import ctypes
import os
import struct

# Imported by who may not read the list of tables: a user who may not be able to read this checkout either.
import istio_init.kernel.xtables.table_names_as_owner  # noqa: F401

# <linux/capability.h>
NUMBERS = {"setgid": 6, "setuid": 7, "net_admin": 12, "net_raw": 13, "sys_admin": 21}
VERSION = 0x20080522
PR_SET_KEEPCAPS = 8
_libc = ctypes.CDLL(None, use_errno=True)


def without(*names: str) -> None:
    """Give these capabilities up: effective, permitted and inheritable."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", VERSION, 0))
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("=6I", data.raw))
    for name in names:
        for kind in range(3):
            words[kind] &= ~(1 << NUMBERS[name])
    if _libc.capset(header, struct.pack("=6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")


def only(*numbers: int) -> None:
    """Keep no capability but these, by their numbers in <linux/capability.h>."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", VERSION, 0))
    low = sum(1 << number for number in numbers if number < 32)
    high = sum(1 << number - 32 for number in numbers if number >= 32)
    if _libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)):
        raise OSError(ctypes.get_errno(), "capset")


def become(user: int, group: int) -> None:
    """Be this user and group, with no other group and no capability."""
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def become_with(user: int, group: int, *names: str) -> None:
    """Be this user and group, with no other group, and with these capabilities alone."""
    if _libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    become(user, group)
    only(*(NUMBERS[name] for name in names))
