"""Prints other programs' matches and targets as iptables-save does, from the kernel's structs.

A plain run has no such rules. The layouts are those of <linux/netfilter/xt_*.h>, <linux/netfilter_ipv4/ipt_*.h> and
<linux/netfilter_ipv6/ip6t_*.h>; the spellings those of the save functions in iptables' extensions/. What is not known
here has no words, and stays bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables import (
    foreign_counts,
    foreign_headers,
    foreign_ipv6,
    foreign_marks,
    foreign_matches,
    foreign_places,
    foreign_rates,
    foreign_targets,
)
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

# By name and revision.
MATCHES: dict[tuple[str, int], Reader] = {
    **foreign_matches.MATCHES,
    **foreign_headers.MATCHES,
    **foreign_ipv6.MATCHES,
    **foreign_counts.MATCHES,
    **foreign_places.MATCHES,
    **foreign_rates.MATCHES,
}
TARGETS: dict[tuple[str, int], Reader] = {
    **foreign_targets.TARGETS,
    **foreign_marks.TARGETS,
    **foreign_ipv6.TARGETS,
    **foreign_rates.TARGETS,
}


def match_options(name: str, revision: int, data: bytes, family: Family = IPV4) -> str | None:
    """The options of a match; None where they are not known here."""
    return _read(MATCHES.get((name, revision)), data, family)


def target_options(name: str, revision: int, data: bytes, family: Family) -> str | None:
    """The options of a target, which may be none; None where they are not known here."""
    return _read(TARGETS.get((name, revision)), data, family)


def _read(reader: Reader | None, data: bytes, family: Family) -> str | None:
    if reader is None:
        return None
    try:
        return " ".join(reader(data, family))
    except (struct.error, LookupError, ValueError):
        return None  # an unexpected length: its layout is unknown
