"""Encodes a Rule as an x_tables entry, of which the kernel's tables consist. decode_rule.py reads entries.

An entry is an ipt_entry or ip6t_entry (<linux/netfilter_ipv4/ip_tables.h>, <linux/netfilter_ipv6/ip6_tables.h>):
a header of addresses, interfaces and protocol; `nfcache`; the offsets of the target and of the next entry;
`comefrom` and the counters; then the matches, then the target. Native byte order.

The kernel stores `nfcache` and does not use it. Entries of this program have their signature there.

Entries have the form that libiptc takes: counters and `comefrom` are zero, and verdicts and jumps have a name instead
of a number or an offset. Equal rules are therefore equal bytes.
"""

from __future__ import annotations

import _struct as struct  # struct.py only hands it on

from istio_init.errors import KernelError
from istio_init.kernel.xtables.encode_match import pack_match, pack_target
from istio_init.kernel.xtables.encode_ports import pack_ports
from istio_init.kernel.xtables.ip_header import HEADER, LAYOUTS, PUTS, put_goto, whole_of
from istio_init.model.rules import DestinationPorts, Jump, Protocol, Rule, SourcePorts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.kernel.xtables.ip_header import EntryLayout
    from istio_init.model.rules import Family

# In the entry's nfcache, in this order in memory.
SIGNATURE = b"ISTI"

OFFSETS = struct.Struct("=HH")  # of target and next entry
VERDICT = struct.Struct("=i")
VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}

# struct ipt_getinfo, which ip6t_getinfo equals: name, valid hooks, hooks' first and last entries, entries, bytes.
INFO = struct.Struct("=32sI5I5III")
# By the numbers of <linux/netfilter.h>, NF_INET_*.
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")

# A user-defined chain begins with an entry whose target has this name; its data is the chain's name.
ERROR = b"ERROR\0"
ERROR_SIZE = 64


def pack(rule: Rule, family: Family) -> bytes:
    """Encode a rule with the signature, as libiptc takes it. KernelError if no entry can express the rule.

    SourcePorts with DestinationPorts right behind become one match of -m tcp or -m udp, as iptables makes it.
    """
    try:
        return _pack(rule, LAYOUTS[family])
    except (ValueError, OverflowError, struct.error) as error:  # type: ignore[attr-defined]
        raise KernelError(f"{rule!r}: no rule of the kernel for {family} can hold this: {error}") from error


def _pack(rule: Rule, layout: EntryLayout) -> bytes:
    fields = list(layout.blank)
    whole_header = body = b""
    transport = 0
    source: SourcePorts | None = None
    for match in rule.matches:
        # Kinds are compared as they are and frequent ones come first: with some dozen rules, a match statement shows.
        if source and type(match) is not DestinationPorts:
            body += pack_ports(transport, source, None)
            source = None
        if put := PUTS.get(type(match)):
            put(match, fields, layout)
            if type(match) is Protocol:
                transport = 0 if match.negated else match.number
        elif type(match) is DestinationPorts:
            body += pack_ports(transport, source, match)
            source = None
        elif type(match) is SourcePorts:
            source = match
        elif header := whole_of(match):
            whole_header = header
        else:
            body += pack_match(match)  # type: ignore[arg-type] # of what PUTS has, nothing is left
    if source:
        body += pack_ports(transport, source, None)
    if isinstance(rule.target, Jump) and rule.target.goto and not whole_header:
        put_goto(fields, layout)
    if whole_header:
        header = whole_header
        if len(header) != layout.struct.size or tuple(fields) != layout.blank:
            raise ValueError(f"a {HEADER!r} stands for all of the header, in {layout.struct.size} bytes")
    else:
        header = layout.struct.pack(*fields)
    target = pack_target(rule.target, layout.family)
    target_offset = layout.size + len(body)
    offsets = OFFSETS.pack(target_offset, target_offset + len(target))
    return header + SIGNATURE + offsets + layout.uncounted + body + target
