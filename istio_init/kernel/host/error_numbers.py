"""The error numbers that a run compares with. `import errno`, which has all of them, takes as long as five modules.

From <asm-generic/errno-base.h> and <asm-generic/errno.h>: the same on amd64, arm, arm64, ppc64, riscv and s390x.
"""

from __future__ import annotations

EPERM = 1
ENOENT = 2
ESRCH = 3
EINTR = 4
ENXIO = 6
EAGAIN = 11
ENOMEM = 12
EACCES = 13
EBUSY = 16
EEXIST = 17
ENODEV = 19
ENOTDIR = 20
EINVAL = 22
ENOSPC = 28
EROFS = 30
ENOSYS = 38
ERESTART = 85
EPROTONOSUPPORT = 93
ESOCKTNOSUPPORT = 94
EOPNOTSUPP = 95
EAFNOSUPPORT = 97
EADDRNOTAVAIL = 99
ENOBUFS = 105
