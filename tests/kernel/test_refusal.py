"""What each error number of the legacy tables is told as.

The kernel says them in integration/kernel/test_refusals.py, test_missing_modules.py and test_seccomp.py.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from istio_init.kernel.xtables.refusal import explain
from istio_init.kernel.xtables.sockopt import COMMITTING, OPENING, StepError

if TYPE_CHECKING:
    from istio_init.model.rules import Family


@pytest.mark.parametrize(
    ("number", "step", "family", "name", "words"),
    [
        (errno.EAFNOSUPPORT, OPENING, "ipv6", "nat", "this kernel has no ipv6"),
        (errno.ENOENT, OPENING, "ipv4", "mangle", "load the module iptable_mangle; "),
        (errno.ENOENT, OPENING, "ipv6", "raw", "load the module ip6table_raw; "),
        (errno.ENOENT, OPENING, "ipv4", "nat", "nftables"),
        (errno.EOPNOTSUPP, COMMITTING, "ipv4", "raw", "CONFIG_NF_CONNTRACK_ZONES"),
        (errno.EINVAL, COMMITTING, "ipv4", "nat", "dmesg"),
        (errno.ELOOP, COMMITTING, "ipv4", "nat", "loop"),
        (errno.ENOMEM, COMMITTING, "ipv4", "nat", "memory"),
        (errno.EAGAIN, OPENING, "ipv4", "nat", "without the xtables lock"),
        (errno.EIO, COMMITTING, "ipv4", "nat", "dmesg"),
    ],
)
def test_words(number: int, step: str, family: Family, name: str, words: str) -> None:
    error = explain(StepError(step, number), family, name, None)
    assert error.errno == number
    assert str(error).startswith(f"{family} {name}".rstrip() + f": can't {step}: {os.strerror(number)}: ")
    assert words in str(error)
    assert "\n" not in str(error)
