"""C libraries through the C half of ctypes: open one by its soname, call its functions.

The Python half costs a start more than a millisecond, a tenth of what Python itself takes, for types and
conveniences that a run does not use (docs/speed.md).
"""

from __future__ import annotations

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    addressof,
    byref,
    dlopen,
    dlsym,
    get_errno,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Pointer", "addressof", "byref", "function", "get_errno", "keep_freed_memory", "library"]

# dlopen(3): resolve all symbols at once. The C library itself is among what the process has loaded.
RTLD_NOW = 2

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = 32 << 20  # bytes, as much as glibc takes for the last one


class Pointer(_SimpleCData):  # type: ignore[type-arg]
    """A void *, as an int or None; with `from_buffer`, the place of a buffer of at least eight bytes."""

    _type_ = "P"


class Function(CFuncPtr):
    """A function that leaves its errno to `get_errno`."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO


def library(soname: str | None) -> int:
    """A shared library by its soname, or with None the process itself; OSError where it can't be opened."""
    return dlopen(soname, RTLD_NOW)  # type: ignore[arg-type] # it takes None, whatever typeshed says


def function(library: int, name: str, result: Any = int) -> Any:  # noqa: ANN401 (ctypes' types have none)
    """One function of a library by name; OSError where there is no such.

    It takes any int as an int, bytes as a const char * and a Pointer as itself.
    """
    symbol: Any = Function(dlsym(library, name))
    if result is not int:  # the default of ctypes functions
        symbol.restype = result
    return symbol


def keep_freed_memory() -> None:
    """Have the C library use what is freed again, rather than give it back to the kernel and ask for as much anew.

    The kernel hands memory out page by page and wiped, which takes a fifth of the time of writing 10,000 rules. glibc's
    mallopt(3); other libraries do as they do.
    """
    try:
        mallopt = function(library(None), "mallopt")
    except OSError:
        return
    for parameter in (_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD):
        mallopt(parameter, _KEPT)
