"""C libraries through the C half of ctypes: open one by its soname, call its functions.

The Python half costs a start more than a millisecond, a tenth of what Python itself takes, for types and
conveniences that a run does not use (docs/speed.md).
"""

from __future__ import annotations

from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, addressof, byref, dlopen, get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = [
    "Char",
    "Library",
    "Number",
    "Pointer",
    "String",
    "addresses",
    "addressof",
    "byref",
    "get_errno",
    "keep_freed_memory",
]

# dlopen(3): resolve all symbols at once. The C library itself is among what the process has loaded.
RTLD_NOW = 2

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = 32 << 20  # bytes, as much as glibc takes for the last one


class Char(_SimpleCData):  # type: ignore[type-arg]
    """A char."""

    _type_ = "c"


class Number:
    """Any int as an argument among others that have a type."""

    from_param = staticmethod(int)


class Pointer(_SimpleCData):  # type: ignore[type-arg]
    """A void *, as an int or None."""

    _type_ = "P"


class String(_SimpleCData):  # type: ignore[type-arg]
    """A const char *, as bytes or None."""

    _type_ = "z"


def addresses(buffer: bytearray, sizes: tuple[int, ...]) -> tuple[Iterator[int], object]:
    """The addresses of a buffer's parts, whose sizes follow each other over and over; and what keeps it in place."""
    from itertools import accumulate

    held = Char.from_buffer(buffer)
    return accumulate((addressof(held), *(sizes * (len(buffer) // sum(sizes)))[:-1])), held


class Function(CFuncPtr):
    """A function that leaves its errno to `get_errno`."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO


def keep_freed_memory() -> None:
    """Have the C library use what is freed again, rather than give it back to the kernel and ask for as much anew.

    The kernel hands memory out page by page and wiped, which takes a fifth of the time of writing 10,000 rules. glibc's
    mallopt(3); other libraries do as they do.
    """
    try:
        mallopt = Library(None).function("mallopt")
    except AttributeError:
        return
    for parameter in (_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD):
        mallopt(parameter, _KEPT)


class Library:
    """A shared library by its soname, or with None the process itself; OSError where it can't be opened."""

    def __init__(self, soname: str | None) -> None:
        # The attribute that CFuncPtr looks for (and all that it does, whatever typeshed says).
        self._handle = dlopen(soname, RTLD_NOW)  # type: ignore[arg-type]

    def function(self, name: str, result: Any = int, *arguments: Any) -> Any:  # noqa: ANN401 (ctypes' types have none)
        """One function by name; `result` None is void. AttributeError where the library has no such."""
        function: Any = Function((name, self))  # type: ignore[arg-type]
        if result is not int:  # which is what functions give where nothing else is said
            function.restype = result
        function.argtypes = arguments or None
        return function
