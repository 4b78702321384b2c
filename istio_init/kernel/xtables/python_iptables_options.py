"""The options of libxtables' extensions, where python-iptables reads them wrongly.

iptables 1.8.11's struct xt_option_entry has one field more (`base`, of numbers). python-iptables up to 1.2.0 does not
know it, and so finds only the first option of an extension: it lacks `gid-owner` and `dport`.
"""

from __future__ import annotations

import ctypes

from iptc.xtables import XTOPT_MAND, XTablesError, xt_option_entry, xtables

from istio_init.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_IPV4 = 2  # NFPROTO_IPV4
_SHORTER = ctypes.sizeof(xt_option_entry)
_LONGER = _SHORTER + ctypes.sizeof(ctypes.c_void_p)


def mend() -> None:
    """Have python-iptables step through options by their size in the libxtables that is loaded.

    KernelError where neither size fits: no rule could be written rightly.
    """
    size = entry_size()
    if size == _SHORTER:
        return

    def entries(first: Any) -> Iterator[Any]:
        at = ctypes.cast(first, ctypes.c_void_p).value or 0
        while (entry := xt_option_entry.from_address(at)).name is not None:
            yield entry
            at += size

    def lookup(_self: object, first: Any, name: bytes) -> Any:
        return next((entry for entry in entries(first) if entry.name == name), None)

    def check(_self: object, name: bytes, flags: int, first: Any) -> None:
        for entry in entries(first):
            if entry.flags & XTOPT_MAND and not flags & (1 << entry.id):
                raise XTablesError(f"{name!r}: --{entry.name.decode()} must be specified")

    xtables._option_lookup, xtables._options_fcheck = lookup, check


def entry_size() -> int:
    """The size of an option's entry in the libxtables that is loaded, in bytes; see `mend`."""
    options = ctypes.cast(xtables(_IPV4).find_match("owner")[0].x6_options, ctypes.c_void_p).value
    if not options:
        raise KernelError("libxtables: the match owner has no options; use --iptables-engine libiptc")
    # What follows the first entry is the next one's name, or the further field, which is 0 here.
    size = _SHORTER if ctypes.c_void_p.from_address(options + _SHORTER).value else _LONGER
    if xt_option_entry.from_address(options + size).name != b"gid-owner":
        raise KernelError(
            "python-iptables doesn't know the options of this libxtables (it knows those of iptables up to 1.8.11); "
            "use --iptables-engine libiptc"
        )
    return size
